use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::*;

/// A history, call by call.
#[derive(Default)]
struct Story {
    events: Vec<Event>,
    next: u64,
}

impl Story {
    fn push(&mut self, what: What) {
        self.events.push(Event { at_us: self.events.len() as u64, what });
    }

    fn call(&mut self, call: Call) -> u64 {
        let op = self.next;
        self.next += 1;
        self.push(What::Invoke { op, process: 0, call });
        op
    }

    fn get(&mut self) -> u64 {
        self.call(Call::Get { session: "s".into(), instance: 0 })
    }

    fn set(&mut self, label: &str) -> u64 {
        self.call(Call::Set { session: "s".into(), label: label.into(), instance: 0 })
    }

    fn cas(&mut self, from: Option<&str>, revision: u64, label: &str) -> u64 {
        let from = from.map(str::to_owned);
        self.call(Call::Cas { session: "s".into(), from, revision, label: label.into(), instance: 0 })
    }

    fn shows(&mut self, op: u64, label: Option<&str>, revision: u64, index: u64) {
        let answer = Answer::Register { label: label.map(str::to_owned), revision, index: Some(index) };
        self.push(What::Ok { op, attempts: 1, answer });
    }

    /// A change that was acknowledged, and its revision.
    fn done(&mut self, op: u64, label: &str, revision: u64) {
        self.shows(op, Some(label), revision, revision);
    }

    fn mismatches(&mut self, op: u64, index: u64) {
        self.push(What::Ok { op, attempts: 1, answer: Answer::Mismatch { index: Some(index) } });
    }

    fn fails(&mut self, op: u64) {
        self.push(What::Fail { op, attempts: 1, message: String::new() });
    }

    fn unknown(&mut self, op: u64) {
        self.push(What::Info { op, attempts: 1, message: String::new() });
    }

    /// `a` is set with revision 5.
    fn begun() -> Self {
        let mut story = Self::default();
        let op = story.set("a");
        story.done(op, "a", 5);
        story
    }

    fn check(&self) -> Check {
        let check = check(&self.events);
        assert!(check.decided, "{check:?}");
        check
    }

    fn passes(&self) {
        let check = self.check();
        assert!(check.passed(), "{check:#?}");
    }

    /// Both ways of judging see it; `anomaly` is what the witness calls it.
    fn fails_as(&self, anomaly: &str, ops: &[u64]) {
        let found = self.check().found;
        let by_log = found.iter().find(|one| one.anomaly == anomaly).unwrap_or_else(|| panic!("{found:#?}"));
        assert_eq!(by_log.ops, ops, "{by_log:?}");
        assert!(found.iter().any(|one| one.anomaly == "not-linearizable"), "{found:#?}");
    }

    /// The labels alone could be right: only the log shows it.
    fn fails_by_log_alone(&self, anomaly: &str, ops: &[u64]) {
        let found = self.check().found;
        let kinds: Vec<_> = found.iter().map(|one| (one.anomaly.as_str(), one.ops.as_slice())).collect();
        assert_eq!(kinds, [(anomaly, ops)], "{found:#?}");
    }
}

#[test]
fn calls_one_after_the_other_pass() {
    let mut story = Story::default();
    let get = story.get();
    story.push(What::Ok { op: get, attempts: 1, answer: Answer::Register { label: None, revision: 0, index: None } });
    let set = story.set("a");
    story.done(set, "a", 5);
    let get = story.get();
    story.shows(get, Some("a"), 5, 6);
    let cas = story.cas(Some("a"), 5, "b");
    story.done(cas, "b", 7);
    let cas = story.cas(Some("a"), 5, "c");
    story.mismatches(cas, 8);
    let get = story.get();
    story.shows(get, Some("b"), 7, 8);
    story.passes();
    assert_eq!(story.check().figures["swaps"], 1);
    assert_eq!(check(&[]).found, []);
}

#[test]
fn planted_a_stale_read() {
    let mut story = Story::begun();
    let set = story.set("b");
    story.done(set, "b", 7);
    let get = story.get();
    story.shows(get, Some("a"), 5, 7);
    story.fails_as("stale-read", &[1, 2]);
    // An instance that is behind, and says so.
    let mut story = Story::begun();
    let set = story.set("b");
    story.done(set, "b", 7);
    let get = story.get();
    story.shows(get, Some("a"), 5, 6);
    story.fails_as("stale-read", &[1, 2]);
    // One that knows nothing of the session at all.
    let mut story = Story::begun();
    let get = story.get();
    story.push(What::Ok { op: get, attempts: 1, answer: Answer::Register { label: None, revision: 0, index: None } });
    story.fails_as("stale-read", &[0, 1]);
    let found = story.check().found;
    let searched = found.iter().find(|one| one.anomaly == "not-linearizable").unwrap();
    assert!(searched.message.contains("up to operation 1 "), "{}", searched.message);
}

#[test]
fn planted_a_read_that_knows_nothing_of_what_a_mismatch_had_shown() {
    let mut story = Story::default();
    let unknown = story.set("x");
    story.unknown(unknown);
    let cas = story.cas(None, 0, "b");
    story.mismatches(cas, 6);
    let get = story.get();
    story.push(What::Ok { op: get, attempts: 1, answer: Answer::Register { label: None, revision: 0, index: None } });
    story.fails_as("stale-read", &[1, 2]);
}

#[test]
fn planted_a_lost_update() {
    let mut story = Story::begun();
    let (first, second) = (story.cas(Some("a"), 5, "b"), story.cas(Some("a"), 5, "c"));
    story.done(first, "b", 7);
    story.done(second, "c", 8);
    story.fails_as("lost-update", &[1, 2]);
    // A change that was acknowledged, and is not there.
    let mut story = Story::begun();
    let set = story.set("b");
    story.done(set, "b", 7);
    let get = story.get();
    story.shows(get, Some("a"), 5, 9);
    story.fails_as("stale-read", &[1, 2]);
}

#[test]
fn planted_two_sessions_of_one_register_that_both_began() {
    let mut story = Story::default();
    let (first, second) = (story.cas(None, 0, "b"), story.cas(None, 0, "c"));
    story.done(first, "b", 7);
    story.done(second, "c", 8);
    story.fails_as("lost-update", &[0, 1]);
}

#[test]
fn planted_an_effect_of_a_failed_change() {
    let mut story = Story::begun();
    let set = story.set("b");
    story.fails(set);
    let get = story.get();
    story.shows(get, Some("b"), 7, 7);
    story.fails_as("effect-of-failed", &[1, 2]);
}

#[test]
fn planted_a_label_from_nowhere() {
    let mut story = Story::begun();
    let get = story.get();
    story.shows(get, Some("z"), 7, 7);
    story.fails_as("from-nowhere", &[1]);
}

#[test]
fn planted_an_order_of_the_log_against_real_time() {
    let mut story = Story::begun();
    let first = story.set("b");
    story.done(first, "b", 9);
    let second = story.set("c");
    story.done(second, "c", 8);
    story.fails_by_log_alone("reordered", &[1, 2]);
    // Over two registers, of which each is right for itself.
    let mut story = Story::begun();
    let other = story.call(Call::Set { session: "t".into(), label: "b".into(), instance: 0 });
    story.done(other, "b", 4);
    story.fails_by_log_alone("reordered", &[0, 1]);
    // Where they overlap in time, either order is right.
    let mut story = Story::begun();
    let (first, second) = (story.set("b"), story.set("c"));
    story.done(first, "b", 9);
    story.done(second, "c", 8);
    story.passes();
}

#[test]
fn planted_a_read_of_an_older_log_than_was_known() {
    let mut story = Story::begun();
    let other = story.call(Call::Set { session: "t".into(), label: "b".into(), instance: 0 });
    story.done(other, "b", 9);
    let get = story.get();
    story.shows(get, Some("a"), 5, 8);
    story.fails_by_log_alone("stale-read", &[1, 2]);
}

#[test]
fn planted_a_mismatch_where_nothing_had_changed() {
    let mut story = Story::begun();
    let cas = story.cas(Some("a"), 5, "b");
    story.mismatches(cas, 6);
    story.fails_as("wrong-mismatch", &[0, 1]);
    // A change that nobody saw may have been in between, and another one after it.
    let mut story = Story::begun();
    let unknown = story.set("x");
    story.unknown(unknown);
    let cas = story.cas(Some("a"), 5, "b");
    story.mismatches(cas, 9);
    story.passes();
    let set = story.set("c");
    story.done(set, "c", 10);
    let get = story.get();
    story.shows(get, Some("c"), 10, 10);
    story.passes();
    // But not one that expected something else, or after which the label is there as before.
    let mut story = Story::begun();
    let cas = story.cas(Some("z"), 3, "x");
    story.unknown(cas);
    let cas = story.cas(Some("a"), 5, "b");
    story.mismatches(cas, 9);
    story.fails_as("wrong-mismatch", &[0, 2]);
    let mut story = Story::begun();
    let unknown = story.set("x");
    story.unknown(unknown);
    let cas = story.cas(Some("a"), 5, "b");
    story.mismatches(cas, 9);
    let get = story.get();
    story.shows(get, Some("a"), 5, 9);
    story.fails_as("wrong-mismatch", &[0, 3, 2]);
    // Nor one that came later.
    let mut story = Story::begun();
    let cas = story.cas(Some("a"), 5, "b");
    story.mismatches(cas, 6);
    let unknown = story.set("x");
    story.unknown(unknown);
    story.fails_as("wrong-mismatch", &[0, 1]);
}

#[test]
fn planted_answers_that_do_not_fit_together() {
    let mut story = Story::begun();
    let set = story.set("b");
    story.done(set, "b", 5);
    story.fails_by_log_alone_among("one-revision");
    let mut story = Story::begun();
    let get = story.get();
    story.shows(get, Some("a"), 6, 6);
    story.fails_by_log_alone("wrong-revision", &[0, 1]);
    let mut story = Story::begun();
    let set = story.set("b");
    story.shows(set, Some("b"), 9, 8);
    story.fails_by_log_alone("wrong-index", &[1]);
    let mut story = Story::begun();
    let set = story.set("b");
    story.done(set, "a", 9);
    story.fails_by_log_alone("wrong-answer", &[1]);
}

impl Story {
    fn fails_by_log_alone_among(&self, anomaly: &str) {
        let found = self.check().found;
        assert!(found.iter().any(|one| one.anomaly == anomaly), "{found:#?}");
        assert!(found.iter().all(|one| one.anomaly != "not-linearizable"), "{found:#?}");
    }
}

#[test]
fn a_change_of_unknown_outcome_may_come_late_or_never_but_not_twice() {
    for end in [true, false] {
        let mut story = Story::default();
        let unknown = story.set("x");
        if end {
            story.unknown(unknown);
        }
        let set = story.set("a");
        story.done(set, "a", 5);
        let get = story.get();
        story.shows(get, Some("a"), 5, 5);
        story.passes();
        let get = story.get();
        story.shows(get, Some("x"), 9, 9);
        story.passes();
        assert_eq!(story.check().figures["unknownSeen"], 1);
        let get = story.get();
        story.shows(get, Some("a"), 5, 9);
        story.fails_as("stale-read", &[0, 4]);
        story.events.truncate(story.events.len() - 2);
        let set = story.set("b");
        story.done(set, "b", 11);
        let get = story.get();
        story.shows(get, Some("x"), 12, 12);
        story.fails_as("doubled", &[0, 6]);
    }
}

#[test]
fn planted_a_change_of_unknown_outcome_that_was_seen_before_it_was_asked_for() {
    let mut story = Story::begun();
    let get = story.get();
    story.shows(get, Some("x"), 7, 7);
    let set = story.set("x");
    story.unknown(set);
    story.fails_as("reordered", &[1, 2]);
}

#[test]
fn planted_a_compare_and_set_of_unknown_outcome_that_took_effect_too_late() {
    let mut story = Story::begun();
    let cas = story.cas(Some("a"), 5, "x");
    story.unknown(cas);
    let set = story.set("b");
    story.done(set, "b", 7);
    story.passes();
    let get = story.get();
    story.shows(get, Some("x"), 8, 8);
    story.fails_as("lost-update", &[2, 1]);
}

#[test]
fn an_answer_from_a_command_that_was_proposed_again_has_a_later_index_than_its_change() {
    let mut story = Story::begun();
    let set = story.set("b");
    story.shows(set, Some("b"), 7, 9);
    let get = story.get();
    story.shows(get, Some("b"), 7, 9);
    story.passes();
    assert_eq!(story.check().figures["proposedAgain"], 1);
}

#[test]
fn a_search_that_is_cut_short_is_no_pass() {
    let mut rng = StdRng::seed_from_u64(1);
    let history = simulated(&mut rng, &Shape { clients: 10, calls: 100, registers: 1, unknown: 0.0 });
    let check = check_within(&history, 50);
    assert!(!check.decided && !check.passed(), "{check:?}");
    assert_eq!(check.figures["undecided"], json!(["r0"]));
    assert_eq!(check.found, [], "and no find either");
}

/// What a correct server answers to clients who call at random.
struct Shape {
    clients: usize,
    /// Of each register.
    calls: usize,
    registers: usize,
    unknown: f64,
}

fn simulated(rng: &mut StdRng, shape: &Shape) -> Vec<Event> {
    /// When a call was made, had its effect, and was answered.
    struct Moments {
        call: u64,
        effect: u64,
        end: u64,
        client: usize,
        register: usize,
    }
    let mut moments = Vec::new();
    let mut base = 0;
    for register in 0..shape.registers {
        let mut free = vec![base; shape.clients];
        for _ in 0..shape.calls {
            let client = (0..shape.clients).min_by_key(|client| free[*client]).unwrap();
            let call = free[client] + rng.random_range(1..3000);
            let effect = call + rng.random_range(1..5000);
            let end = effect + rng.random_range(1..5000);
            free[client] = end;
            moments.push(Moments { call, effect, end, client, register });
        }
        // The next register begins while this one is still in use.
        base = free.iter().copied().min().unwrap();
    }
    moments.sort_by_key(|one| one.effect);
    let mut now: Vec<(Option<String>, u64)> = vec![(None, 0); shape.registers];
    // What a client was shown last, and of which register; and what anybody was.
    let mut seen = vec![(0, None, 0); shape.clients];
    let mut known: Vec<(Option<String>, u64)> = now.clone();
    let mut index = 0;
    let mut timed: Vec<(u64, What)> = Vec::new();
    for (op, Moments { call, end, client, register, .. }) in (0..).zip(moments) {
        index += rng.random_range(0..2);
        let session = format!("r{register}");
        let label = format!("c{client}-{op}");
        let unknown = rng.random_bool(shape.unknown);
        let state = &mut now[register];
        let change = |state: &mut (Option<String>, u64), index: &mut u64| {
            *index += 1;
            *state = (Some(label.clone()), *index);
        };
        let (call_made, applied) = match rng.random_range(0..10) {
            0..=3 => (Call::Get { session, instance: 0 }, true),
            4..=6 => {
                let applied = !unknown || rng.random_bool(0.5);
                if applied {
                    change(state, &mut index);
                }
                (Call::Set { session, label, instance: 0 }, applied)
            }
            _ => {
                let (of, from, revision) = seen[client].clone();
                let (from, revision) =
                    if of != register || rng.random_bool(0.5) { known[register].clone() } else { (from, revision) };
                let applied = state.1 == revision && (!unknown || rng.random_bool(0.5));
                if applied {
                    change(state, &mut index);
                } else {
                    index += 1;
                }
                (Call::Cas { session, from, revision, label, instance: 0 }, applied)
            }
        };
        let is_get = matches!(call_made, Call::Get { .. });
        timed.push((call, What::Invoke { op, process: client as u32, call: call_made }));
        let message = || "planted".to_owned();
        let answered = if unknown && is_get {
            What::Fail { op, attempts: 1, message: message() }
        } else if unknown {
            What::Info { op, attempts: 1, message: message() }
        } else if applied {
            seen[client] = (register, state.0.clone(), state.1);
            known[register].clone_from(state);
            let (label, revision) = state.clone();
            let named = (revision > 0).then_some(index);
            What::Ok { op, attempts: 1, answer: Answer::Register { label, revision, index: named } }
        } else {
            What::Ok { op, attempts: 1, answer: Answer::Mismatch { index: Some(index) } }
        };
        timed.push((end, answered));
    }
    timed.sort_by_key(|(at, _)| *at);
    timed.into_iter().map(|(at_us, what)| Event { at_us, what }).collect()
}

/// From the environment, so that a failure can be repeated; else a new one each time.
fn seed() -> u64 {
    let seed = std::env::var("OPENCLAW_SEED").map_or_else(|_| rand::random(), |text| text.parse().unwrap());
    println!("the same again: OPENCLAW_SEED={seed} cargo test -p jepsen-lite register");
    seed
}

#[test]
fn what_a_correct_server_answers_passes() {
    let mut rng = StdRng::seed_from_u64(seed());
    for _ in 0..60 {
        let shape = Shape {
            clients: rng.random_range(1..8),
            calls: rng.random_range(1..40),
            registers: rng.random_range(1..4),
            unknown: *[0.0, 0.05, 0.3].choose(&mut rng).unwrap(),
        };
        let check = check(&simulated(&mut rng, &shape));
        assert!(check.passed(), "{check:#?}");
    }
}

#[test]
fn two_hundred_calls_on_each_of_fifty_registers_are_judged_in_time() {
    let mut rng = StdRng::seed_from_u64(seed());
    for unknown in [0.0, 0.02, 0.1] {
        let history = simulated(&mut rng, &Shape { clients: 10, calls: 200, registers: 50, unknown });
        let begin = std::time::Instant::now();
        let check = check(&history);
        println!(
            "10 clients, 200 calls, 50 registers, {unknown} unknown: {:?}, {} steps",
            begin.elapsed(),
            check.figures["searchSteps"]
        );
        assert!(check.passed(), "{check:#?}");
    }
}

/// Every order there is, tried one by one. `calls`: when made, when answered (none: unknown), and what it was.
fn brute_force(calls: &[(usize, Option<usize>, Kind<'_>, End<'_>)], state: Option<&str>, done: u32) -> bool {
    let open = |at: usize| done & (1 << at) == 0;
    let earliest_end = (0..calls.len()).filter(|at| open(*at)).filter_map(|at| calls[at].1).min();
    let Some(earliest_end) = earliest_end else { return true };
    (0..calls.len()).filter(|at| open(*at) && calls[*at].0 < earliest_end).any(|at| {
        let (_, _, kind, end) = calls[at];
        let next = match (kind, end) {
            (Kind::Get, End::Shown { label, .. }) => (label == state).then_some(state),
            (Kind::Set { label }, End::Shown { .. } | End::Unknown) => Some(Some(label)),
            (Kind::Cas { from, label, .. }, End::Shown { .. }) => (from == state).then_some(Some(label)),
            (Kind::Cas { from, .. }, End::Mismatch { .. }) => (from != state).then_some(state),
            (Kind::Cas { from, label, .. }, End::Unknown) => Some(if from == state { Some(label) } else { state }),
            (Kind::Get | Kind::Set { .. }, End::Mismatch { .. }) | (Kind::Get, End::Unknown) | (_, End::Failed) => {
                panic!("not drawn")
            }
        };
        next.is_some_and(|next| brute_force(calls, next, done | 1 << at))
    })
}

#[test]
fn the_search_agrees_with_trying_every_order() {
    let seed = seed();
    let mut rng = StdRng::seed_from_u64(seed);
    let labels = ["a", "b", "c"];
    let (mut legal, mut illegal) = (0, 0);
    for round in 0..20_000 {
        // Few labels, so that several calls set the same one, and few moments, so that much overlaps.
        let count = rng.random_range(1..7);
        let mut moments: Vec<(u32, bool, usize)> = Vec::new();
        for at in 0..count {
            let call = rng.random_range(0..20);
            moments.push((call, false, at));
            moments.push((call + rng.random_range(0..8), true, at));
        }
        moments.sort_unstable();
        let place = |end: bool, at: usize| moments.iter().position(|one| (one.1, one.2) == (end, at)).unwrap();
        let operations: Vec<Operation<'_>> = (0..count)
            .map(|at| {
                let label = *labels[..rng.random_range(1..=3)].choose(&mut rng).unwrap();
                let from = [None, Some("a"), Some("b"), Some("c")][rng.random_range(0..4)];
                let end = place(true, at);
                let shown = |label| End::Shown { at: end, label, revision: 0, index: None };
                let (kind, end) = match rng.random_range(0..8) {
                    0..=2 => (Kind::Get, shown(from)),
                    3 => (Kind::Set { label }, shown(Some(label))),
                    4 => (Kind::Set { label }, End::Unknown),
                    5 => (Kind::Cas { from, revision: 0, label }, shown(Some(label))),
                    6 => (Kind::Cas { from, revision: 0, label }, End::Mismatch { at: end, index: None }),
                    _ => (Kind::Cas { from, revision: 0, label }, End::Unknown),
                };
                Operation { op: at as u64, session: "s", call: place(false, at), kind, end }
            })
            .collect();
        let calls: Vec<_> = operations.iter().map(|one| (one.call, one.end.at(), one.kind, one.end)).collect();
        let expected = brute_force(&calls, None, 0);
        let operations: Vec<&Operation<'_>> = operations.iter().collect();
        let judgement = search::search(&operations, search::BUDGET).judgement;
        let expected_judgement = if expected { Judgement::Linearizable } else { Judgement::Not };
        assert_eq!(judgement, expected_judgement, "round {round} of seed {seed}: {operations:#?}");
        if expected { legal += 1 } else { illegal += 1 }
    }
    assert!(legal > 2000 && illegal > 2000, "{legal} legal, {illegal} illegal");
}

/// Where the log explains everything, there is an order: nothing that the search finds escapes the witness.
#[test]
fn what_the_search_finds_the_log_shows_too() {
    let seed = seed();
    let mut rng = StdRng::seed_from_u64(seed);
    let mut spoiled = 0;
    for round in 0..4000 {
        let shape = Shape { clients: 4, calls: rng.random_range(4..25), registers: 1, unknown: 0.1 };
        let mut history = simulated(&mut rng, &shape);
        // One answer is another call's, or a failure is an answer.
        let answers: Vec<Answer> = history
            .iter()
            .filter_map(|event| match &event.what {
                What::Ok { answer, .. } => Some(answer.clone()),
                What::Invoke { .. }
                | What::Fail { .. }
                | What::Info { .. }
                | What::Fault { .. }
                | What::Leader { .. }
                | What::Owner { .. } => None,
            })
            .collect();
        let ends: Vec<usize> =
            (0..history.len()).filter(|at| !matches!(history[*at].what, What::Invoke { .. })).collect();
        let (Some(at), Some(other)) = (ends.choose(&mut rng), answers.choose(&mut rng)) else { continue };
        let another = rng.random_bool(0.7);
        let what = &mut history[*at].what;
        if another && let What::Ok { answer, .. } = what {
            answer.clone_from(other);
        } else if let What::Ok { op, .. } | What::Info { op, .. } = what {
            *what = What::Fail { op: *op, attempts: 1, message: String::new() };
        }
        let check = check(&history);
        let searched = check.found.iter().any(|one| one.anomaly == "not-linearizable");
        let by_log = check.found.iter().any(|one| one.anomaly != "not-linearizable");
        assert!(check.decided && (by_log || !searched), "round {round} of seed {seed}: {check:#?}\n{history:#?}");
        spoiled += usize::from(searched);
    }
    assert!(spoiled > 200, "{spoiled}");
}
