use ipcmutex::ErrorKind::Timeout;

use super::{Scenario, alone};
use crate::agent::Agent;
use crate::cell::Cell;

pub(super) const ALL: &[Scenario] = &[alone("names::spellings_of_one_file", 14, spellings_of_one_file)];

fn spellings_of_one_file(cell: &Cell<'_>) {
    let folder = cell.folder("spelled");
    let real = folder.join("real");
    std::fs::create_dir(&real).expect("a new folder");
    std::os::unix::fs::symlink(&real, folder.join("link")).expect("a new name");
    let (real, base) = (real.display().to_string(), folder.display().to_string());
    let agent: Agent = cell.opened(&format!("mpm:{real}/lock"));
    agent.begin("hold 1 1 forever").reply().ok();
    let spellings = [
        format!("file:{real}/lock"),
        format!("file://{real}/lock"),
        format!("mpm:{base}/link/lock"),
        format!("mpm:{real}/../real/lock"),
        format!("mpm:{real}//lock"),
        format!("mpm:{real}/l%6fck"),
    ];
    for (number, url) in (2..).zip(&spellings) {
        agent.open(number, url).ok();
        agent.begin(&format!("hold {number} {number} 0")).reply().err(Timeout);
    }
    agent.call("end 1").ok();
    for number in (2..).take(spellings.len()) {
        agent.begin(&format!("hold {number} {number} 0")).reply().ok();
        agent.call(&format!("end {number}")).ok();
    }
}
