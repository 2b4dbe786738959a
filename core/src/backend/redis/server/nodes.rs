//! The nodes of a cluster, as the threads that wait for an answer reach them: each command goes to the node that has its slot, and
//! on to where that one sends it.

use std::collections::HashMap;
use std::io;
use std::iter;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use redis::{Cmd, ConnectionLike, RedisError, RedisResult, Value};

use super::super::wire;
use super::dial::Address;
use super::learned::Learned;
use super::single::Single;
use super::slots::{Redirect, Slots, redirect, slot_of};
use super::{PATIENT, Place, Server};
use crate::sync::{Guarded, Turns};
use crate::sys::thread;

/// How soon a node is asked again that cannot serve for now: a slot on its way, a failover.
pub(super) const AGAIN: Duration = Duration::from_millis(25);
/// How long that is tried. No request sent on takes longer to arrive than this.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// How much longer what is asked of all is waited for than one node's answer.
const OTHERS: Duration = Duration::from_millis(500);
/// So long after an answer it is not asked again where the slots are, however many doubt it.
pub(super) const SPARED: Duration = Duration::from_millis(200);
/// So often a command is sent on at once: beyond that the nodes do not agree yet who has the slot.
pub(super) const HOPS: usize = 3;

/// Whether the cluster is about to be able to serve this.
pub(super) fn passes(error: &RedisError) -> bool {
    matches!(error.code(), Some("TRYAGAIN" | "CLUSTERDOWN"))
}

/// Whether it says that nobody serves the slot: the others may know of one who does.
pub(super) fn is_down(error: &RedisError) -> bool {
    error.code() == Some("CLUSTERDOWN")
}

/// A node that cannot be reached, told as the cluster would: it is not the whole cluster that is gone.
pub(super) fn down(node: &Address) -> RedisError {
    let what = redis::ServerErrorKind::ClusterDown;
    (redis::ErrorKind::Server(what), "Hash slot not served", format!("the node {node} cannot be reached")).into()
}

/// What is at the address of `node`, and does not speak as a server does, is as good as nobody.
pub(super) fn nobody(node: &Address, error: RedisError) -> RedisError {
    if error.is_io_error() || wire::is_answer(&error) || wire::is_wrong_password(&error) {
        return error;
    }
    io::Error::new(io::ErrorKind::ConnectionRefused, format!("{node} is no node of a cluster: {error}")).into()
}

pub(super) fn unknown() -> RedisError {
    (redis::ErrorKind::Server(redis::ServerErrorKind::ClusterDown), "Hash slot not served by any node").into()
}

impl Server {
    pub(crate) fn is_cluster(&self) -> bool {
        matches!(self.place, Place::Cluster(_))
    }

    /// Learns from the nodes that are known which slots are where. Blocks. The one that is doubted, if any, may know less than the others:
    /// it is asked last. What a server of another cluster tells, that has got the address of a node, counts only if nobody is left to tell
    /// of the one that is known: its nodes may all have been replaced, and a process that begins now would believe it too.
    pub(super) fn survey(&self, learned: &Learned, doubted: Option<&Address>, limit: Duration) -> RedisResult<()> {
        let Place::Cluster(seeds) = &self.place else { return Err(unknown()) };
        let mut known = learned.nodes();
        // Those we were sent to since may be all that are left.
        let mut sent_to = learned.slots.lock().nodes();
        sent_to.retain(|node| !known.contains(node));
        known.extend_from_slice(&sent_to);
        let mut asked: Vec<&Address> = known.iter().chain(seeds.iter().filter(|seed| !known.contains(seed))).collect();
        asked.sort_by_key(|node| doubted == Some(*node));
        let each = (limit / asked.len() as u32).max(Duration::from_millis(200));
        let (mut failure, mut strange) = (None, None::<((usize, bool), Slots, &Address)>);
        let found = |slots: Slots, node: &Address| {
            // The one that is there is the first to be asked again.
            let mut nodes = slots.nodes();
            nodes.sort_by_key(|other| other != node);
            learned.found_nodes(nodes);
            learned.found_slots(slots);
        };
        for node in asked {
            let reply = self.open_at(learned, node, each).and_then(|mut single| slots().query::<Value>(&mut single));
            match reply {
                Ok(reply) => {
                    let Some(slots) = Slots::read(&reply, node) else {
                        failure = wire::telling(failure, unknown());
                        continue;
                    };
                    let (kin, shared) = {
                        let known = learned.slots.lock();
                        (slots.are_kin_of(&known), slots.shared_with(&known))
                    };
                    if kin {
                        found(slots, node);
                        return Ok(());
                    }
                    if shared == 0 && sent_to.contains(node) && !seeds.contains(node) {
                        // Nor would a process that begins now ask it.
                        failure = wire::telling(failure, unknown());
                        continue;
                    }
                    // Before who was never known to have a slot, such as a replica that has left, goes who was, doubted or not.
                    let shared = (shared, known.contains(node));
                    if strange.as_ref().is_none_or(|(most, ..)| shared > *most) {
                        strange = Some((shared, slots, node));
                    }
                }
                Err(error) => failure = wire::telling(failure, error),
            }
        }
        let Some((_, slots, node)) = strange else { return Err(failure.unwrap_or_else(unknown)) };
        found(slots, node);
        Ok(())
    }
}

/// For one call of a thread.
pub(crate) struct Nodes {
    all: Arc<All>,
    /// Where the last command went, and on which connection there.
    last: Option<(Address, u64)>,
    limit: Duration,
    /// Since when somebody has been about it, and until when it is waited for.
    asked: Instant,
    deadline: Option<Instant>,
    /// At the end of the process: the nodes that do not answer, and nobody is waited for.
    left_out: Option<Vec<Address>>,
}

/// The nodes as a process's threads share them: at each one asks at a time, and nobody waits for who asks another.
struct All {
    server: Server,
    learned: Arc<Learned>,
    /// This one did not answer, and may have a successor; or it has told that many slots have moved.
    doubted: Guarded<Option<Address>>,
    surveyed: Turns<Option<Surveyed>>,
    seats: Guarded<HashMap<Address, Arc<Turns<Seat>>>>,
    /// How many connections there have been.
    made: AtomicU64,
}

/// How it was last asked where the slots are.
struct Surveyed {
    begun: Instant,
    ended: Instant,
    /// How long it was waited for. Who would wait for longer shares no failure.
    limit: Duration,
    found: RedisResult<()>,
}

/// Whoever has it asks this node.
#[derive(Default)]
struct Seat {
    /// With its number.
    connection: Option<(Single, u64)>,
    /// When it failed, unless it has answered since, how long it was waited for, and how it failed: who asked before that, and
    /// would not wait for longer, shares the outcome.
    failure: Option<(Instant, Duration, RedisError)>,
}

impl All {
    fn survey(&self, doubted: Option<&Address>, limit: Duration) -> RedisResult<()> {
        self.server.survey(&self.learned, doubted, limit)?;
        let nodes = self.learned.slots.lock().nodes();
        self.seats.lock().retain(|node, _| nodes.contains(node));
        Ok(())
    }

    /// Before the next command it is looked where the slots are. Where no node is known to have one, that is done anyway.
    fn doubt(&self, node: Option<&Address>) {
        if let Some(node) = node {
            *self.doubted.lock() = Some(node.clone());
        }
    }

    fn seat(&self, node: &Address) -> Arc<Turns<Seat>> {
        self.seats.lock().entry(node.clone()).or_default().clone()
    }
}

impl Nodes {
    pub(crate) fn open(server: &Server, learned: &Arc<Learned>, limit: Duration) -> RedisResult<Nodes> {
        server.survey(learned, None, limit)?;
        let (server, learned) = (server.clone(), learned.clone());
        let (doubted, surveyed) = (Guarded::default(), Turns::default());
        let (seats, made) = (Guarded::default(), AtomicU64::new(0));
        Ok(Nodes::on(Arc::new(All { server, learned, doubted, surveyed, seats, made })))
    }

    fn on(all: Arc<All>) -> Nodes {
        let limit = all.server.patience();
        Nodes { all, last: None, limit, asked: Instant::now(), deadline: None, left_out: None }
    }

    /// For another call.
    pub(crate) fn another(&self) -> Nodes {
        Nodes::on(self.all.clone())
    }

    /// For the end of the process: a node that does not answer in time, this thread or another one, is not asked again.
    pub(crate) fn hurry(&mut self) {
        self.asked = Instant::now();
        self.left_out = Some(Vec::new());
    }

    pub(crate) fn asked_for(&mut self, asked: Instant, deadline: Option<Instant>) {
        (self.asked, self.deadline) = (asked, deadline);
    }

    pub(crate) fn set_limit(&mut self, limit: Duration) {
        self.limit = limit;
    }

    /// Asks where the slots are now, or shares what somebody has just found who began to ask later than this call was made.
    fn survey(&self, doubted: Option<&Address>) -> RedisResult<()> {
        let all = &self.all;
        let end = self.deadline.map(|end| end.max(Instant::now() + PATIENT));
        let found = match all.surveyed.lock_by(end) {
            None => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
            Some(mut last) => match &*last {
                Some(last)
                    if last.begun > self.asked
                        && last.ended.elapsed() < SPARED
                        && (last.found.is_ok() || last.limit >= self.left()) =>
                {
                    // It may be older than the doubt, which is left to the next call.
                    all.doubt(doubted);
                    return last.found.clone();
                }
                _ => {
                    let (begun, limit) = (Instant::now(), self.left());
                    let found = all.survey(doubted, limit);
                    *last = Some(Surveyed { begun, ended: Instant::now(), limit, found: found.clone() });
                    found
                }
            },
        };
        if found.is_err() {
            all.doubt(doubted);
        }
        found
    }

    pub(crate) fn ask(&mut self, command: &Cmd) -> RedisResult<Value> {
        let slot = slot_of(command);
        let end = Instant::now() + PATIENCE.min(self.limit);
        let mut forced: Option<Address> = None;
        let mut surveyed = self.left_out.is_some();
        let doubted = if surveyed { None } else { self.all.doubted.lock().take() };
        if let Some(node) = doubted {
            surveyed = true;
            self.survey(Some(&node))?;
        }
        for hop in 0.. {
            if hop > HOPS {
                if Instant::now() >= end {
                    break;
                }
                std::thread::sleep(AGAIN);
            }
            // WAIT speaks of what was written on its own connection.
            let last = if slot.is_none() { self.last.clone() } else { None };
            let (same, last) = last.map_or((None, None), |(node, number)| (Some(number), Some(node)));
            let asking = forced.is_some();
            let node = forced.take().or(last).or_else(|| match slot {
                Some(slot) => self.all.learned.slots.lock().node(slot).cloned(),
                None => self.masters().into_iter().next(),
            });
            let Some(node) = node else {
                if std::mem::replace(&mut surveyed, true) {
                    return Err(unknown());
                }
                // Somebody may have been given the slot since.
                self.survey(None)?;
                continue;
            };
            let answer = loop {
                match self.ask_on(&node, asking, same, command) {
                    Err(error) if is_down(&error) && !surveyed => break Err(error),
                    Err(error) if passes(&error) && Instant::now() < end => std::thread::sleep(AGAIN),
                    answer => break answer,
                }
            };
            match answer {
                Err(error) if (error.is_connection_refusal() || wire::is_wrong_password(&error)) && !surveyed => {
                    // It may have a successor, and its address another server.
                    surveyed = true;
                    self.survey(Some(&node))?;
                }
                Err(error) if is_down(&error) && !surveyed => {
                    // It may have left the cluster. If nobody tells, it is asked again.
                    surveyed = true;
                    let _ = self.survey(Some(&node));
                }
                Err(error) => match redirect(&error, &node) {
                    Some(Redirect { ask: true, address }) => forced = Some(address),
                    Some(Redirect { ask: false, address }) => {
                        if slot.is_some_and(|slot| self.all.learned.corrected(slot, address)) {
                            self.all.doubt(Some(&node));
                        }
                    }
                    None => return Err(error),
                },
                Ok(value) => return Ok(value),
            }
        }
        Err(unknown())
    }

    /// The answers of the masters that are there, without those that `may` be missing. If it is for `key`, its node has all its time,
    /// and the others, who are asked meanwhile, little more; nor does what one of them refuses keep anybody from it.
    pub(crate) fn ask_each(
        &mut self,
        key: Option<&str>,
        command: &Cmd,
        may: &dyn Fn(&RedisError) -> bool,
    ) -> RedisResult<Vec<Value>> {
        let its = key.map(|key| self.all.learned.node_of(key));
        let (tell, told) = channel();
        let mut waited_for = Vec::new();
        for node in self.masters() {
            if its.as_ref().is_none_or(|its| its.as_ref() == Some(&node)) {
                waited_for.push(node);
                continue;
            }
            let (mut nodes, command, tell) = (self.another(), command.clone(), tell.clone());
            let ask = move || drop(tell.send(nodes.ask_at(&node, &command)));
            // One that no thread can be had for does not answer.
            let _ = thread::spawn("ipcmutex-dial", thread::FULL_STACK, ask);
        }
        drop(tell);
        let answers: Vec<_> = waited_for.iter().map(|node| self.ask_at(node, command)).collect();
        let end = Instant::now() + OTHERS;
        let others = iter::from_fn(|| told.recv_timeout(end.saturating_duration_since(Instant::now())).ok());
        let others: Vec<_> = others.filter(RedisResult::is_ok).collect();
        let is_missing =
            |answer: &RedisResult<Value>| answer.as_ref().is_err_and(|error| error.is_io_error() || may(error));
        answers.into_iter().filter(|answer| !is_missing(answer)).chain(others).collect()
    }

    pub(super) fn masters(&self) -> Vec<Address> {
        self.all.learned.slots.lock().nodes()
    }

    /// Asks this very node.
    pub(super) fn ask_at(&mut self, node: &Address, command: &Cmd) -> RedisResult<Value> {
        self.ask_on(node, false, None, command)
    }

    /// Asks it on its connection, or on the `same` alone. One that is connected to must be of the cluster that is known.
    fn ask_on(&mut self, node: &Address, asking: bool, same: Option<u64>, command: &Cmd) -> RedisResult<Value> {
        let all = self.all.clone();
        let seat = all.seat(node);
        let now = Instant::now();
        let turn = match &self.left_out {
            Some(nodes) if nodes.contains(node) => None,
            Some(_) => seat.lock_by(Some(now + self.limit)),
            // However many are ahead.
            None => seat.lock_by(self.deadline.map(|end| end.max(now + PATIENT))),
        };
        let Some(mut seat) = turn else {
            self.leave_out(node);
            return Err(io::Error::from(io::ErrorKind::TimedOut).into());
        };
        if let Some((at, waited, error)) = &seat.failure
            && *at > self.asked
            && *waited >= self.limit
        {
            return Err(error.clone());
        }
        // What nobody would hear is not said.
        if seat.connection.as_mut().is_some_and(|(single, _)| single.has_ended()) {
            seat.connection = None;
        }
        if same.is_some() && same != seat.connection.as_ref().map(|(_, number)| *number) {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let begun = Instant::now();
        let (asked, told) = match self.connected(&mut seat, node) {
            Ok((_, _, false)) => {
                seat.connection = None;
                return Err(io::Error::from(io::ErrorKind::ConnectionRefused).into());
            }
            Ok((single, number, _)) => {
                self.last = Some((node.clone(), number));
                (true, say(single, asking, command))
            }
            Err(error) => (false, Err(error)),
        };
        let error = match told {
            Ok(value) => {
                seat.failure = None;
                return value.extract_error();
            }
            Err(error) => error,
        };
        seat.connection = None;
        // A silent one would keep who comes next for as long, one that cannot be reached from all it would say.
        if !asked || error.is_timeout() {
            let waited = if asked { begun.elapsed() } else { Duration::MAX };
            seat.failure = Some((Instant::now(), waited, error.clone()));
        }
        all.doubt(Some(node));
        self.leave_out(node);
        Err(error)
    }

    fn leave_out(&mut self, node: &Address) {
        if let Some(nodes) = &mut self.left_out {
            nodes.push(node.clone());
        }
    }

    /// Its connection, the number of that, and unless it has been asked on it before, whether it is of the cluster that is known.
    fn connected<'a>(&self, seat: &'a mut Seat, node: &Address) -> RedisResult<(&'a mut Single, u64, bool)> {
        let mut is_kin = true;
        let (single, number) = match &mut seat.connection {
            Some(connection) => connection,
            place => {
                let limit = self.all.server.connect_timeout.min(self.left());
                let mut single =
                    self.all.server.open_at(&self.all.learned, node, limit).map_err(|it| nobody(node, it))?;
                let said = slots().query(&mut single);
                is_kin = self.all.learned.slots.lock().are_those_of(node, said)?;
                place.insert((single, self.all.made.fetch_add(1, Ordering::Relaxed)))
            }
        };
        single.set_limit(self.left());
        Ok((single, *number, is_kin))
    }

    /// How long an answer may take, when others ahead and connecting have had their time.
    fn left(&self) -> Duration {
        let left = self.deadline.map(|end| end.saturating_duration_since(Instant::now()).max(PATIENT));
        left.map_or(self.limit, |left| left.min(self.limit))
    }
}

/// Asks a node which of them has what.
pub(super) fn slots() -> Cmd {
    let mut slots = redis::cmd("CLUSTER");
    slots.arg("SLOTS");
    slots
}

/// An error is one of the connection; what the node refuses is a value.
fn say(single: &mut Single, asking: bool, command: &Cmd) -> RedisResult<Value> {
    if asking {
        redis::cmd("ASKING").query::<()>(single)?;
    }
    single.req_command(command)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;
    use crate::url::{LockUrl, Target};

    #[test]
    fn who_has_time_does_not_share_the_failure_of_who_had_little() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let url = LockUrl::parse(&format!("rpm+redis+cluster://127.0.0.1:{port}/x")).expect("a URL");
        let Target::Redis(target) = url.target() else { panic!("of Redis") };
        let server = Server::of(target).expect("a server");
        let (learned, doubted, surveyed) = (Arc::default(), Guarded::default(), Turns::default());
        let all = All { server, learned, doubted, surveyed, seats: Guarded::default(), made: AtomicU64::new(0) };
        let patient = Nodes::on(Arc::new(all));
        let mut hasty = patient.another();
        hasty.set_limit(Duration::from_millis(1));
        hasty.survey(None).expect_err("nobody answers");
        std::thread::spawn(move || {
            for mut client in listener.incoming().map_while(Result::ok) {
                let mut buffer = [0; 4096];
                while let Some(read) = client.read(&mut buffer).ok().filter(|read| *read > 0) {
                    let asked = String::from_utf8_lossy(&buffer[..read]).into_owned();
                    let mut answer = "+OK\r\n".repeat(asked.matches("SETINFO").count());
                    if asked.contains("SLOTS") {
                        answer += &format!("*1\r\n*3\r\n:0\r\n:16383\r\n*3\r\n$0\r\n\r\n:{port}\r\n$1\r\na\r\n");
                    }
                    if client.write_all(answer.as_bytes()).is_err() {
                        break;
                    }
                }
            }
        });
        patient.survey(None).expect("it is answered");
        assert!(patient.masters() == [Address::Tcp("127.0.0.1".to_owned(), port)]);
    }
}
