//! A Redis cluster for tests: masters of its own, and slots that can be moved between them.

use std::time::{Duration, Instant};

use crate::secrets;
use crate::servers::{Redis, Reply};

const SLOTS: usize = 16384;
const PATIENCE: Duration = Duration::from_secs(30);

/// What makes a server one of a cluster.
pub const CONFIG: &[&str] =
    &["cluster-enabled yes", "cluster-port @port@", "cluster-node-timeout 2000", "cluster-require-full-coverage no"];

/// Some masters, which have all slots among them.
pub struct Cluster {
    /// The nodes.
    pub nodes: Vec<Redis>,
}

fn ok(reply: &Reply) {
    assert_eq!(reply.text(), "OK", "{reply:?}");
}

impl Cluster {
    /// `count` masters. What is left when one is gone goes on.
    ///
    /// # Panics
    /// If they do not come together.
    pub fn start(count: usize) -> Cluster {
        Cluster::with(count, &[])
    }

    /// The same with further lines of configuration.
    ///
    /// # Panics
    /// If they do not come together.
    pub fn with(count: usize, more: &[&str]) -> Cluster {
        let config = [CONFIG, more].concat();
        let password = secrets::password("the-cluster");
        Cluster::of((0..count).map(|_| Redis::with(Some(&password), &config)).collect())
    }

    /// Of these servers, which have the lines of [`CONFIG`].
    ///
    /// # Panics
    /// If they do not come together.
    pub fn of(nodes: Vec<Redis>) -> Cluster {
        let count = nodes.len();
        for (at, node) in nodes.iter().enumerate() {
            let (first, last) = (at * SLOTS / count, (at + 1) * SLOTS / count - 1);
            ok(&node.command(&["CLUSTER", "SET-CONFIG-EPOCH", &(at + 1).to_string()]));
            ok(&node.command(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()]));
            let (ip, port) =
                nodes[0].address().split_once(':').map(|(ip, port)| (ip.to_owned(), port.to_owned())).expect("it");
            if at > 0 {
                ok(&node.command(&["CLUSTER", "MEET", &ip, &port, &nodes[0].second_port().to_string()]));
            }
        }
        let cluster = Cluster { nodes };
        let begun = Instant::now();
        while !cluster.is_whole() {
            assert!(begun.elapsed() < PATIENCE, "the cluster does not come together");
            std::thread::sleep(Duration::from_millis(10));
        }
        cluster
    }

    /// Whether all nodes, which must be running, know each other and all slots are served.
    pub fn is_whole(&self) -> bool {
        let known = format!("cluster_known_nodes:{}", self.nodes.len());
        let served = format!("cluster_slots_ok:{SLOTS}");
        self.nodes.iter().all(|node| {
            let info = node.command(&["CLUSTER", "INFO"]);
            [known.as_str(), served.as_str(), "cluster_state:ok"].iter().all(|line| info.text().contains(line))
        })
    }

    /// A lock's URL, by the first node. `id` may carry a query.
    pub fn url(&self, id: &str) -> String {
        format!("rpm+redis+cluster://{}{}/{id}", self.nodes[0].login(), self.nodes[0].address())
    }

    /// The slot of a key.
    pub fn slot(&self, key: &str) -> usize {
        usize::try_from(self.nodes[0].command(&["CLUSTER", "KEYSLOT", key]).number()).expect("a slot")
    }

    /// Which node had the key's slot in the beginning.
    pub fn home(&self, key: &str) -> usize {
        let slot = self.slot(key);
        (0..self.nodes.len()).find(|at| slot < (at + 1) * SLOTS / self.nodes.len()).expect("a node")
    }

    fn id(&self, node: usize) -> String {
        self.nodes[node].command(&["CLUSTER", "MYID"]).text().to_owned()
    }

    /// Begins to move the key's slot.
    pub fn begin_move(&self, key: &str, from: usize, to: usize) {
        let slot = self.slot(key).to_string();
        ok(&self.nodes[to].command(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &self.id(from)]));
        ok(&self.nodes[from].command(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &self.id(to)]));
    }

    /// Moves these keys, if they are there, and not their slot, which must be open for that.
    pub fn migrate(&self, keys: &[&str], from: usize, to: usize) {
        let (ip, port) =
            self.nodes[to].address().split_once(':').map(|(ip, port)| (ip.to_owned(), port.to_owned())).expect("it");
        let mut words = vec!["MIGRATE", &ip, &port, "", "0", "5000", "AUTH", self.nodes[to].password(), "KEYS"];
        words.extend_from_slice(keys);
        let moved = self.nodes[from].command(&words);
        assert!(["OK", "NOKEY"].contains(&moved.text()), "{moved:?}");
    }

    /// Moves what is in the slot, and then the slot.
    pub fn end_move(&self, key: &str, from: usize, to: usize) {
        let slot = self.slot(key).to_string();
        loop {
            let Reply::List(keys) = self.nodes[from].command(&["CLUSTER", "GETKEYSINSLOT", &slot, "100"]) else {
                panic!("no keys")
            };
            if keys.is_empty() {
                break;
            }
            self.migrate(&keys.iter().map(Reply::text).collect::<Vec<_>>(), from, to);
        }
        let id = self.id(to);
        let others = (0..self.nodes.len()).filter(|at| *at != to && *at != from);
        for node in [to, from].into_iter().chain(others) {
            ok(&self.nodes[node].command(&["CLUSTER", "SETSLOT", &slot, "NODE", &id]));
        }
    }
}
