//! Time and memory of the checkers for one long history: `cargo bench -p jepsen-lite --bench checkers`.
//!
//! The history is that of a server without a fault, simulated: clients take turns at random, each call has its effect at some
//! moment between its invocation and its answer, and some answers are lost. What a checker costs depends on how much is under
//! way at once, so that is as in a run: some clients at a session, and calls that are soon over.
#![expect(clippy::print_stdout, reason = "figures are what it is for")]

use std::collections::BTreeMap;
use std::time::Instant;

use jepsen_lite::checkers::{append, register};
use jepsen_lite::history::{Answer, Call, Event, What};
use openclaw_proto::http::{AppendResponse, Entry, Role};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const OPERATIONS: usize = 50_000;
const SESSIONS: usize = 100;
/// At one session.
const CLIENTS: usize = 3;
/// One answer in so many is lost.
const LOST_ONE_IN: u32 = 50;
const SEED: u64 = 1;

/// A call that is under way.
struct Pending {
    op: u64,
    call: Call,
    /// None until it had its effect.
    answer: Option<Answer>,
}

/// What the server holds of one session.
#[derive(Default)]
struct Session {
    entries: Vec<String>,
    label: Option<String>,
    revision: u64,
    /// The newest label and revision that an answer told: clients expect nothing else.
    told: (Option<String>, u64),
    clients: [Option<Pending>; CLIENTS],
}

struct Simulation {
    rng: StdRng,
    at_us: u64,
    index: u64,
    events: Vec<Event>,
    sessions: Vec<Session>,
}

impl Simulation {
    fn run(call: impl Fn(&mut StdRng, &str, &Session, u64) -> Call) -> Self {
        let mut simulation = Self {
            rng: StdRng::seed_from_u64(SEED),
            at_us: 0,
            index: 0,
            events: Vec::new(),
            sessions: (0..SESSIONS).map(|_| Session::default()).collect(),
        };
        let mut begun = 0;
        while begun < OPERATIONS as u64 || simulation.sessions.iter().any(|one| one.clients.iter().any(Option::is_some))
        {
            let (at, client) = (simulation.rng.random_range(0..SESSIONS), simulation.rng.random_range(0..CLIENTS));
            let name = format!("session-{at}");
            match simulation.sessions[at].clients[client].take() {
                None if begun < OPERATIONS as u64 => {
                    begun += 1;
                    let call = call(&mut simulation.rng, &name, &simulation.sessions[at], begun);
                    let process = u32::try_from(at * CLIENTS + client).unwrap_or(u32::MAX);
                    simulation.note(What::Invoke { op: begun, process, call: call.clone() });
                    simulation.sessions[at].clients[client] = Some(Pending { op: begun, call, answer: None });
                }
                None => {}
                Some(Pending { op, call, answer: None }) => {
                    let answer = Some(simulation.effect(at, &call));
                    simulation.sessions[at].clients[client] = Some(Pending { op, call, answer });
                }
                Some(Pending { op, answer: Some(answer), .. }) => {
                    let lost = simulation.rng.random_ratio(1, LOST_ONE_IN);
                    let told = &mut simulation.sessions[at].told;
                    if let Answer::Register { label, revision, .. } = &answer
                        && !lost
                        && *revision > told.1
                    {
                        *told = (label.clone(), *revision);
                    }
                    simulation.note(match lost {
                        true => What::Info { op, attempts: 1, message: "lost".to_owned() },
                        false => What::Ok { op, attempts: 1, answer },
                    });
                }
            }
        }
        simulation
    }

    fn note(&mut self, what: What) {
        self.at_us += 1 + self.rng.random_range(0..20);
        self.events.push(Event { at_us: self.at_us, what });
    }

    fn effect(&mut self, at: usize, call: &Call) -> Answer {
        self.index += 1;
        let (session, index) = (&mut self.sessions[at], self.index);
        match call {
            Call::Append { text, .. } => {
                session.entries.push(text.clone());
                let seq = session.entries.len() as u64;
                Answer::Appended(AppendResponse { seq, id: format!("{seq:08x}") })
            }
            Call::Read { after, limit, .. } => {
                let head = session.entries.len() as u64;
                let after = usize::try_from(*after).unwrap_or(usize::MAX);
                let tail = (1..).zip(&session.entries).skip(after).take(usize::try_from(*limit).unwrap_or(usize::MAX));
                Answer::Read { head, tail: tail.map(|(seq, text)| (seq, text.clone())).collect() }
            }
            Call::Cas { revision, .. } if *revision != session.revision => Answer::Mismatch { index: Some(index) },
            Call::Set { label, .. } | Call::Cas { label, .. } => {
                (session.label, session.revision) = (Some(label.clone()), index);
                Answer::Register { label: session.label.clone(), revision: index, index: Some(index) }
            }
            Call::Get { .. } => {
                Answer::Register { label: session.label.clone(), revision: session.revision, index: Some(index) }
            }
            Call::Repeat { .. } | Call::Turn { .. } | Call::Probe { .. } | Call::Say { .. } => Answer::Answered,
        }
    }

    fn transcripts(&self) -> BTreeMap<String, Vec<Entry>> {
        let entry = |(seq, text): (u64, &String)| Entry {
            seq,
            id: format!("{seq:08x}"),
            role: Role::User,
            text: text.clone(),
            created_ms: 0,
            turn_id: None,
            model: None,
            usage: None,
        };
        let sessions = self.sessions.iter().enumerate();
        sessions.map(|(at, one)| (format!("session-{at}"), (1..).zip(&one.entries).map(entry).collect())).collect()
    }
}

/// The most memory that this process had, in MiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or_default();
    line.split_ascii_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or_default() / 1024
}

fn measure(what: &str, check: impl FnOnce() -> String) {
    let (before, begin) = (peak(), Instant::now());
    let said = check();
    println!("{what}: {:.2} s, peak {} MiB ({before} before); {said}", begin.elapsed().as_secs_f64(), peak());
}

fn main() {
    println!("{OPERATIONS} operations, {SESSIONS} sessions, {CLIENTS} clients at each, seed {SEED}");
    let lists = Simulation::run(|rng, session, known, n| {
        let after = (known.entries.len() as u64).saturating_sub(5);
        let (session, text) = (session.to_owned(), format!("text {n}"));
        match rng.random_ratio(1, 3) {
            true => Call::Read { session, instance: 0, after, limit: 20 },
            false => Call::Append { session, key: format!("key-{n}"), text },
        }
    });
    let transcripts = lists.transcripts();
    measure("append", || {
        let verdict = append::check(&lists.events, &transcripts);
        format!("{} acknowledged, {} anomalies", verdict.acknowledged, verdict.anomalies.len())
    });
    let registers = Simulation::run(|rng, session, held, n| {
        let (session, label) = (session.to_owned(), format!("label-{n}"));
        match rng.random_range(0..4) {
            0 => Call::Set { session, label, instance: 0 },
            1 => {
                let (from, revision) = held.told.clone();
                Call::Cas { session, from, revision, label, instance: 0 }
            }
            _ => Call::Get { session, instance: 0 },
        }
    });
    measure("register", || {
        let check = register::check(&registers.events);
        format!("decided: {}, {} found, {} steps", check.decided, check.found.len(), check.figures["searchSteps"])
    });
}
