//! Which node of a cluster has which hash slot.

use std::io;

use redis::{RedisError, RedisResult, Value};

use super::dial::Address;
use crate::backend::redis::keys::slot;

/// How many corrections are kept before a new survey is due.
const CORRECTIONS: usize = 64;

/// The slot that a command is for, by its first key; `None` for one that any node can answer.
pub(super) fn slot_of(command: &redis::Cmd) -> Option<u16> {
    let mut words = command.args_iter().filter_map(|word| match word {
        redis::Arg::Simple(word) => Some(word),
        _ => None,
    });
    let key = match words.next()? {
        b"EVALSHA" | b"EVAL" => words.nth(2),
        b"SSUBSCRIBE" => words.next(),
        _ => None,
    };
    key.map(slot)
}

/// Where a server sends us.
pub(super) struct Redirect {
    /// For this one command only.
    pub(crate) ask: bool,
    pub(super) address: Address,
}

/// What `error` says of a better node; `from` sent it, and is meant where it names no host.
pub(super) fn redirect(error: &RedisError, from: &Address) -> Option<Redirect> {
    let ask = match error.code()? {
        "MOVED" => false,
        "ASK" => true,
        _ => return None,
    };
    let place = error.detail()?.split_whitespace().nth(1)?;
    let (host, port) = place.rsplit_once(':')?;
    let host = match (host, from) {
        ("", Address::Tcp(host, _)) => host.clone(),
        (host, _) => host.to_owned(),
    };
    Some(Redirect { ask, address: Address::Tcp(host, port.parse().ok()?) })
}

#[derive(Default)]
pub(super) struct Slots {
    ranges: Vec<(u16, u16, Address)>,
    /// Of the nodes, replicas too, each once; none of servers that do not tell them. An address may be another server's one day.
    ids: Vec<Vec<u8>>,
    corrections: usize,
}

impl Slots {
    /// From the reply to `CLUSTER SLOTS` of `from`.
    pub(crate) fn read(reply: &Value, from: &Address) -> Option<Slots> {
        let Value::Array(rows) = reply else { return None };
        let ranges = rows.iter().map(|row| range(row, from)).collect::<Option<Vec<_>>>()?;
        let mut ids: Vec<_> = rows.iter().flat_map(ids).collect();
        ids.sort_unstable();
        ids.dedup();
        (!ranges.is_empty()).then_some(Slots { ranges, ids, corrections: 0 })
    }

    pub(crate) fn node(&self, slot: u16) -> Option<&Address> {
        self.ranges.iter().find(|(first, last, _)| (*first..=*last).contains(&slot)).map(|(_, _, node)| node)
    }

    /// The masters, each once.
    pub(super) fn nodes(&self) -> Vec<Address> {
        let mut nodes: Vec<Address> = Vec::new();
        for (_, _, node) in &self.ranges {
            if !nodes.contains(node) {
                nodes.push(node.clone());
            }
        }
        nodes
    }

    /// Whether another node has what one had `before`, as after a failover.
    pub(super) fn has_moved_since(&self, before: &Slots) -> bool {
        // Who has what changes where a range begins and behind its end.
        let edges = || before.ranges.iter().flat_map(|(first, last, _)| [*first, last.saturating_add(1)]);
        self.ranges.iter().any(|(first, last, node)| {
            let within = edges().filter(|edge| (*first..=*last).contains(edge));
            std::iter::once(*first).chain(within).any(|slot| before.node(slot).is_some_and(|known| known != node))
        })
    }

    /// How many nodes that are `known` these tell of.
    pub(super) fn shared_with(&self, known: &Slots) -> usize {
        known.ids.iter().filter(|id| self.ids.contains(id)).count()
    }

    /// Whether these are of the cluster that is `known`, be they older or newer. One node in common is not enough if more were known:
    /// who has left for another cluster mostly has kept its id.
    pub(super) fn are_kin_of(&self, known: &Slots) -> bool {
        self.shared_with(known) >= known.ids.len().min(2)
    }

    /// What a server at the address of `node` that was connected to just now makes of itself, when asked for the slots: whether it is
    /// of the cluster that is known. The address may be another server's by now: whoever has it would give away what others hold.
    ///
    /// If it is, those it tells of are known from then on: nodes may be replaced one by one. Who has what stays as it is, since that may
    /// have been corrected since.
    ///
    /// # Errors
    /// That of an address where nobody is, if it is no node, or one that knows of none that has a slot.
    pub(super) fn are_those_of(&mut self, node: &Address, said: RedisResult<Value>) -> RedisResult<bool> {
        let slots = match said {
            Ok(reply) => Slots::read(&reply, node),
            Err(error) if error.is_io_error() => return Err(error),
            Err(error) if error.code() == Some("ERR") => None,
            // It will not tell, as to a user without that right.
            Err(_) => return Ok(true),
        };
        let nobody = || io::Error::new(io::ErrorKind::ConnectionRefused, format!("{node} is no node of a cluster"));
        let slots = slots.ok_or_else(nobody)?;
        let is_kin = slots.are_kin_of(self);
        if is_kin {
            self.ids = slots.ids;
        }
        Ok(is_kin)
    }

    /// `slot` has moved; whether so many have that a survey is due.
    pub(super) fn correct(&mut self, slot: u16, node: Address) -> bool {
        let many = self.corrections == CORRECTIONS;
        if many {
            // The newest ones come first.
            self.ranges.drain(CORRECTIONS / 2..CORRECTIONS);
            self.corrections = CORRECTIONS / 2;
        }
        self.ranges.insert(0, (slot, slot, node));
        self.corrections += 1;
        many
    }
}

/// first, last, master (host, port, …), replicas …
fn range(row: &Value, from: &Address) -> Option<(u16, u16, Address)> {
    let Value::Array(row) = row else { return None };
    let number = |value: &Value| match value {
        Value::Int(number) => u16::try_from(*number).ok(),
        _ => None,
    };
    let Value::Array(master) = row.get(2)? else { return None };
    let host = match (master.first()?, from) {
        // A node that does not know its own address is where we found it.
        (Value::BulkString(host), Address::Tcp(known, _)) if host.is_empty() || host == b"?" => known.clone(),
        (Value::BulkString(host), _) => String::from_utf8(host.clone()).ok()?,
        (Value::Nil, Address::Tcp(known, _)) => known.clone(),
        _ => return None,
    };
    Some((number(row.first()?)?, number(row.get(1)?)?, Address::Tcp(host, number(master.get(1)?)?)))
}

/// Of the nodes of a row: host, port, id, …
fn ids(row: &Value) -> Vec<Vec<u8>> {
    let Value::Array(row) = row else { return Vec::new() };
    let id = |node: &Value| match node {
        Value::Array(node) => match node.get(2)? {
            Value::BulkString(id) => Some(id.clone()),
            _ => None,
        },
        _ => None,
    };
    row.iter().skip(2).filter_map(id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_cluster_is_known_by_its_nodes() {
        let text = |text: &str| Value::BulkString(text.into());
        let node = |id: &&str| Value::Array(vec![text("h"), Value::Int(1), text(id)]);
        let row = |ids: &[&str]| {
            Value::Array([Value::Int(0), Value::Int(9)].into_iter().chain(ids.iter().map(node)).collect())
        };
        let of = |rows: &[&[&str]]| {
            let reply = Value::Array(rows.iter().map(|ids| row(ids)).collect());
            Slots::read(&reply, &Address::Tcp("h".to_owned(), 1)).expect("slots")
        };
        let known = of(&[&["a", "A"], &["b"], &["a", "A"]]);
        for kin in [of(&[&["A", "a"]]), of(&[&["b", "x"], &["A"]]), of(&[&["b"], &["a"], &["y"]])] {
            assert!(kin.are_kin_of(&known));
        }
        for stranger in [of(&[&["x"]]), of(&[&["a", "x"], &["y"]])] {
            assert!(!stranger.are_kin_of(&known) && stranger.are_kin_of(&Slots::default()));
        }
        assert!(of(&[&["a"], &["x"], &["y"]]).are_kin_of(&of(&[&["a"]])), "of one that was alone");
    }

    #[test]
    fn a_node_that_is_connected_to_tells_who_is_known() {
        let node = Address::Tcp("h".to_owned(), 1);
        let said = |ids: &[&str]| {
            let text = |text: &str| Value::BulkString(text.into());
            let nodes = ids.iter().map(|id| Value::Array(vec![text("h"), Value::Int(1), text(id)]));
            Value::Array(vec![Value::Array([Value::Int(0), Value::Int(9)].into_iter().chain(nodes).collect())])
        };
        let mut known = Slots::read(&said(&["a", "b", "c"]), &node).expect("slots");
        let mut is_believed = |ids: &[&str]| known.are_those_of(&node, Ok(said(ids))).expect("a node");
        assert!(!is_believed(&["c", "x"]) && !is_believed(&["x"]));
        // One after the other is replaced.
        assert!(is_believed(&["b", "c", "d"]) && is_believed(&["c", "d", "e"]) && is_believed(&["d", "e", "f"]));
        assert!(!is_believed(&["a", "b", "c"]), "those who have left");
    }

    #[test]
    fn the_slot_of_a_command_is_that_of_its_first_key() {
        let mut call = redis::cmd("EVALSHA");
        call.arg("digest").arg(2).arg("foo").arg("bar");
        assert_eq!(slot_of(&call), Some(12182));
        assert_eq!(slot_of(redis::cmd("INFO").arg("memory")), None);
    }

    #[test]
    fn a_survey_tells_of_a_failover() {
        let at = |port| Address::Tcp("h".to_owned(), port);
        let of = |second| Slots { ranges: vec![(0, 99, at(1)), (100, 16383, at(second))], ids: vec![], corrections: 0 };
        assert!(of(3).has_moved_since(&of(2)));
        assert!(!of(2).has_moved_since(&of(2)) && !of(2).has_moved_since(&Slots::default()));
        // Of two nodes one is left, which has the first slots still.
        let mut alone = Slots { ranges: vec![(0, 16383, at(1))], ids: vec![], corrections: 0 };
        assert!(alone.has_moved_since(&of(2)) && of(2).has_moved_since(&alone));
        // What was corrected since is known already.
        (100..102).for_each(|slot| _ = alone.correct(slot, at(2)));
        let parts = vec![(0, 99, at(1)), (100, 101, at(2)), (102, 16383, at(1))];
        assert!(!Slots { ranges: parts, ids: vec![], corrections: 0 }.has_moved_since(&alone));
    }

    #[test]
    fn corrections_win_and_do_not_pile_up() {
        let at = |port| Address::Tcp("h".to_owned(), port);
        let mut slots = Slots { ranges: vec![(0, 16383, at(1))], ids: vec![], corrections: 0 };
        let surveys = (0..1000).filter(|round| slots.correct(*round, at(2))).count();
        assert_eq!(surveys, 1 + (1000 - CORRECTIONS - 1) / (CORRECTIONS / 2), "the first after {CORRECTIONS}");
        // The last ones.
        assert!((970..1000).all(|round| slots.node(round) == Some(&at(2))) && slots.node(5000) == Some(&at(1)));
        assert!(slots.ranges.len() <= CORRECTIONS + 1);
    }
}
