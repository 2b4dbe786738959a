//! The scripts, on a server whose clock stands but for what a walk adds.

use std::collections::VecDeque;
use std::io::Write;
use std::time::Duration;

use ipcmutex_tests::clock::Clock;
use ipcmutex_tests::servers::{Client, Redis, Reply};

/// Where each walk begins, in microseconds since 1970.
const BEGINNING: i64 = 1_800_000_000_000_000;

/// The engine's scripts that a walk calls.
#[derive(Clone, Copy, Debug)]
pub(super) enum Script {
    Take,
    Release,
    Renew,
    Break,
    Forewarn,
}

/// As the engine joins them.
macro_rules! joined {
    ($($file:literal)+) => { concat!($(include_str!(concat!("../../../core/src/backend/redis/lua/", $file, ".lua"))),+) };
}

/// Their texts, in the order of [`Script`].
pub(super) const TEXTS: [&str; 5] = [
    joined!("keys" "newcomer" "one" "line" "take"),
    joined!("keys" "alone" "one" "line" "release"),
    joined!("renew"),
    joined!("keys" "one" "line" "break"),
    joined!("keys" "one" "line" "forewarn"),
];

/// What a script is to say instead, to be found out.
pub(super) type Change = (&'static str, &'static str);

pub(super) struct Server {
    /// Ends with this.
    _redis: Redis,
    clock: Clock,
    client: Client,
    /// Hears for all processes, each on its own channel.
    ear: Client,
    heard: VecDeque<(String, String)>,
    digests: Vec<String>,
    micros: i64,
}

impl Server {
    /// With the scripts, or with what `changes` make of them.
    pub(super) fn start(test: &str, changes: &[Change]) -> Option<Server> {
        let clock = Clock::new(test)?;
        clock.stand(Duration::from_micros(BEGINNING as u64));
        let redis = Redis::by_clock(&clock);
        let (mut client, ear) = (redis.client(), redis.client());
        let mut time = || match client.command(&["TIME"]) {
            Reply::List(time) => [0, 1].map(|at| time[at].text().to_owned()),
            other => panic!("{other:?}"),
        };
        assert_eq!(time()[0], (BEGINNING / 1_000_000).to_string(), "the clock does not stand: libclock.so is old");
        let times = [(); 5].map(|()| time());
        let stands = times.iter().all(|time| *time == times[0]);
        assert!(stands || redis.info("server", "server_name") == "valkey", "the clock does not stand: {times:?}");
        if !stands {
            // Valkey 9 counts the processor's ticks from when it last asked.
            let _ = writeln!(std::io::stderr(), "SKIPPED {test}: the server has a clock of its own");
            return None;
        }
        let mut texts = TEXTS.map(str::to_owned);
        for (there, instead) in changes {
            assert!(texts.iter().any(|text| text.contains(there)), "no script says {there:?}");
            for text in &mut texts {
                assert!(text.matches(there).count() <= 1, "a script says {there:?} more than once");
                *text = text.replace(there, instead);
            }
        }
        let digests = texts.iter().map(|text| client.command(&["SCRIPT", "LOAD", text]).text().to_owned()).collect();
        let mut server =
            Server { _redis: redis, clock, client, ear, heard: VecDeque::new(), digests, micros: BEGINNING };
        // Who listens to nothing at all is answered otherwise.
        server.tell_ear(&["SUBSCRIBE", "walk"]);
        Some(server)
    }

    /// As it was before any walk.
    pub(super) fn begin(&mut self) {
        // That channel alone is left.
        self.tell_ear(&["SUBSCRIBE", "walk"]);
        self.heard.clear();
        self.micros = BEGINNING;
        self.pass(0);
        self.ask(&["FLUSHALL"]);
    }

    pub(super) fn pass(&mut self, ms: i64) {
        self.micros += ms * 1000;
        self.clock.stand(Duration::from_micros(self.micros as u64));
    }

    pub(super) fn ask(&mut self, words: &[&str]) -> Reply {
        self.client.command(words)
    }

    pub(super) fn run(&mut self, script: Script, keys: &[String], args: &[String]) -> Reply {
        // The time of day never quite stands still.
        self.micros += 2;
        self.pass(0);
        let (digest, count) = (self.digests[script as usize].clone(), keys.len().to_string());
        let mut words = vec!["EVALSHA", &digest, &count];
        words.extend(keys.iter().chain(args).map(String::as_str));
        self.client.command(&words)
    }

    /// A key that has no end, if any.
    pub(super) fn endless(&mut self, keys: &[String]) -> Option<String> {
        for key in keys {
            self.client.send(&["PTTL", key]);
        }
        let left: Vec<i64> = keys.iter().map(|_| self.client.reply().number()).collect();
        keys.iter().zip(left).find(|(_, left)| *left == -1).map(|(key, _)| key.clone())
    }

    /// Whether somebody listens for this process.
    pub(super) fn listen(&mut self, process: &str, listens: bool) {
        self.tell_ear(&[if listens { "SUBSCRIBE" } else { "UNSUBSCRIBE" }, &format!("ipcmutex:w:{process}")]);
    }

    /// What was said until now, and to whom.
    pub(super) fn hear(&mut self) -> VecDeque<(String, String)> {
        // What was published before is sent before the answer.
        self.tell_ear(&["PING"]);
        std::mem::take(&mut self.heard)
    }

    fn tell_ear(&mut self, words: &[&str]) {
        self.ear.send(words);
        loop {
            let Reply::List(parts) = self.ear.reply() else { panic!("no answer to {words:?}") };
            let [kind, channel, text] = [0, 1, 2].map(|at| parts.get(at).map_or("", Reply::text));
            if kind != "message" {
                return;
            }
            let process = channel.strip_prefix("ipcmutex:w:").unwrap_or(channel);
            self.heard.push_back((process.to_owned(), text.to_owned()));
        }
    }
}
