//! What was asked, what was answered, and when: the material of every checker.
//!
//! One JSON line per event: an operation is invoked once and ends at most once, as `ok`, as `fail` (certainly without
//! effect) or as `info` (nobody knows). An operation that never ended is like one that ended as `info`.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use openclaw_proto::http::AppendResponse;
use serde::{Deserialize, Serialize};

/// How much of a history a run may lose that is killed.
const FLUSH_EVERY: Duration = Duration::from_secs(1);

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Microseconds since the run began, on a clock that never steps back.
    pub at_us: u64,
    #[serde(flatten)]
    pub what: What,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum What {
    Invoke {
        op: u64,
        process: u32,
        #[serde(flatten)]
        call: Call,
    },
    Ok {
        op: u64,
        attempts: u32,
        #[serde(flatten)]
        answer: Answer,
    },
    /// Certainly without effect.
    Fail { op: u64, attempts: u32, message: String },
    /// It may have had an effect.
    Info { op: u64, attempts: u32, message: String },
    /// What the harness did to the system.
    Fault { number: u32, kind: String, phase: Phase, detail: String },
    /// Who leads, as the instances told somebody who asks them all the time; one line per change.
    Leader { instance: Option<String>, term: u64 },
    /// Who owns a bot account, in the same way.
    Owner { account: String, instance: Option<String>, token: u64 },
}

/// How far a fault is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// From here on something is wrong, or is being made wrong.
    Begin,
    /// What was done is undone; the system may need a while yet.
    Healed,
    /// Every instance said that it is ready.
    Recovered,
    /// It could not be done, and nothing was.
    Skipped,
}

/// What a client asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "f", rename_all = "lowercase")]
pub enum Call {
    /// Append a text that is unique in the run.
    Append { session: String, text: String, key: String },
    /// The same append again, after it was acknowledged: the answer must be the same.
    Repeat { session: String, text: String, key: String },
    /// Ask one instance for the entries of a session that stand after `after`, at most `limit`.
    Read {
        session: String,
        instance: usize,
        #[serde(default)]
        after: u64,
        #[serde(default)]
        limit: u64,
    },
    /// A message to the model, whose answer is read as it comes: the numbers from 1 to `tokens`.
    Turn { session: String, message: String, tokens: u64, key: String },
    /// One write to one instance, sent once: what matters is how soon it is answered.
    Probe { session: String, instance: usize, text: String },
    /// One of a bot's people says something to it on a chat platform.
    Say { account: String, chat: String, message: String },
    /// Ask one instance for a session's label.
    Get { session: String, instance: usize },
    /// Set a session's label to one that is unique in the run, whatever it is now.
    Set { session: String, label: String, instance: usize },
    /// The same, if the session's label is `from` still, which the client was shown with this revision; 0: if nobody
    /// has set it yet.
    Cas { session: String, from: Option<String>, revision: u64, label: String, instance: usize },
}

impl Call {
    /// As it stands in a line's `f`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Append { .. } => "append",
            Self::Repeat { .. } => "repeat",
            Self::Read { .. } => "read",
            Self::Turn { .. } => "turn",
            Self::Probe { .. } => "probe",
            Self::Say { .. } => "say",
            Self::Get { .. } => "get",
            Self::Set { .. } => "set",
            Self::Cas { .. } => "cas",
        }
    }
}

/// What a client was told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "lowercase")]
pub enum Answer {
    /// Where the appended entry stands.
    Appended(AppendResponse),
    /// The sequence number of the last entry, and the entries that were asked for; nothing and 0 if there is none.
    Read { head: u64, tail: Vec<(u64, String)> },
    /// The committed reply of a turn, and how often its reader was told that it begins again, or had to connect again.
    Replied { turn: String, entry: String, text: String, restarts: u32, reconnects: u32 },
    /// The turn ended without a reply, and said so.
    Ended { turn: String, code: String },
    /// The bot answered on the platform.
    Answered,
    /// A session's label and its revision, as they are or as the call left them; 0 if nobody has set it. The index is
    /// the one in the answer's header: that of the change, or one that what was read reflects at least.
    Register {
        label: Option<String>,
        revision: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        index: Option<u64>,
    },
    /// The label was another, and nothing was set: an answer like any other, not a failure.
    Mismatch {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        index: Option<u64>,
    },
}

/// Collects events from all clients.
#[derive(Debug)]
pub struct Recorder {
    begin: Instant,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    next_process: u32,
    events: Vec<Event>,
    journal: Option<Journal>,
}

/// A file that has the events as they come, apart from those of the last moments: what a run leaves that is killed.
#[derive(Debug)]
struct Journal {
    file: BufWriter<File>,
    flushed: Instant,
}

impl Journal {
    fn write(&mut self, event: &Event) -> Result<()> {
        write_line(&mut self.file, event)?;
        if self.flushed.elapsed() > FLUSH_EVERY {
            self.file.flush().context("write the history")?;
            self.flushed = Instant::now();
        }
        Ok(())
    }
}

impl Inner {
    fn push(&mut self, event: Event) {
        if let Some(journal) = &mut self.journal
            && let Err(error) = journal.write(&event)
        {
            // All of it is written once more in the end, and then this is an error.
            eprintln!("the history is not kept while it comes: {error:#}");
            self.journal = None;
        }
        self.events.push(event);
    }
}

impl Default for Recorder {
    fn default() -> Self {
        Self { begin: Instant::now(), inner: Mutex::default() }
    }
}

impl Recorder {
    /// One that also writes each event into a file when it comes, until [`Self::close`].
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn writing(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
        let recorder = Self::default();
        let journal = Journal { file: BufWriter::new(file), flushed: recorder.begin };
        recorder.inner.lock().unwrap_or_else(PoisonError::into_inner).journal = Some(journal);
        Ok(recorder)
    }

    /// Writes what is not in the file yet, and no more from here on.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn close(&self) -> Result<()> {
        let journal = self.inner.lock().unwrap_or_else(PoisonError::into_inner).journal.take();
        journal.map_or(Ok(()), |mut journal| journal.file.flush().context("write the history"))
    }

    /// A number for a client, which nobody else has in this history. A client that was left without an answer goes on
    /// under another one: its last call may still have its effect at any time.
    pub fn process(&self) -> u32 {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.next_process += 1;
        inner.next_process - 1
    }

    /// Notes a call just before it is made, and names it.
    pub fn invoke(&self, process: u32, call: Call) -> u64 {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let op = inner.next;
        inner.next += 1;
        let at_us = self.now_us();
        inner.push(Event { at_us, what: What::Invoke { op, process, call } });
        op
    }

    /// Notes an answer just after it came, or a fault.
    pub fn note(&self, what: What) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let at_us = self.now_us();
        inner.push(Event { at_us, what });
    }

    /// Notes how far a fault is.
    pub fn fault(&self, number: u32, kind: &str, phase: Phase, detail: &str) {
        self.note(What::Fault { number, kind: kind.to_owned(), phase, detail: detail.to_owned() });
    }

    /// Adds an operation that somebody else kept a record of; its moments may lie in the past.
    pub fn add(&self, process: u32, call: Call, invoked_us: u64, ended: Option<(u64, Answer)>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let op = inner.next;
        inner.next += 1;
        inner.push(Event { at_us: invoked_us, what: What::Invoke { op, process, call } });
        if let Some((at_us, answer)) = ended {
            inner.push(Event { at_us, what: What::Ok { op, attempts: 1, answer } });
        }
    }

    /// The history so far, in the order of time.
    pub fn events(&self) -> Vec<Event> {
        let mut events = self.inner.lock().unwrap_or_else(PoisonError::into_inner).events.clone();
        events.sort_by_key(|event| event.at_us);
        events
    }

    /// When the run began.
    pub fn begin(&self) -> Instant {
        self.begin
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// Writes a history as JSON lines.
///
/// # Errors
/// When the file cannot be written.
pub fn save(path: &Path, events: &[Event]) -> Result<()> {
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    let mut file = BufWriter::new(file);
    for event in events {
        write_line(&mut file, event)?;
    }
    file.flush().context("write the history")
}

fn write_line(file: &mut impl Write, event: &Event) -> Result<()> {
    serde_json::to_writer(&mut *file, event).context("write the history")?;
    file.write_all(b"\n").context("write the history")
}

/// Reads a history back.
///
/// # Errors
/// When a line is not an event; it names the line.
pub fn load(path: &Path) -> Result<Vec<Event>> {
    let Loaded { events, cut } = load_cut(path)?;
    match cut {
        None => Ok(events),
        Some(line) => anyhow::bail!("line {line} of {} was begun and not finished", path.display()),
    }
}

/// A history of which the end may be missing.
#[derive(Debug)]
pub struct Loaded {
    pub events: Vec<Event>,
    /// The number of the last line, if it was begun and not finished; it is not among the events.
    pub cut: Option<usize>,
}

/// Reads what a run left that may have been killed while it wrote. Only a last line that has no end is forgiven.
///
/// # Errors
/// When any other line is not an event; it names the line.
pub fn load_cut(path: &Path) -> Result<Loaded> {
    let file = std::fs::File::open(path).with_context(|| format!("open {}", path.display()))?;
    let (mut file, mut events, mut line) = (BufReader::new(file), Vec::new(), Vec::new());
    for number in 1.. {
        line.clear();
        if file.read_until(b'\n', &mut line).with_context(|| format!("read {}", path.display()))? == 0 {
            break;
        }
        match serde_json::from_slice(&line) {
            Ok(event) => events.push(event),
            Err(_) if line.last() != Some(&b'\n') => return Ok(Loaded { events, cut: Some(number) }),
            Err(error) => return Err(error).with_context(|| format!("line {number} of {}", path.display())),
        }
    }
    Ok(Loaded { events, cut: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_reads_back_as_written() {
        let recorder = Recorder::default();
        let call = Call::Append { session: "s".into(), text: "t".into(), key: "k".into() };
        let op = recorder.invoke(3, call);
        let fault = |phase| What::Fault { number: 1, kind: "kill-all".into(), phase, detail: "all".into() };
        recorder.note(fault(Phase::Begin));
        recorder.note(What::Ok {
            op,
            attempts: 2,
            answer: Answer::Appended(AppendResponse { seq: 1, id: "e".into() }),
        });
        recorder.note(fault(Phase::Healed));
        recorder.note(What::Leader { instance: Some("node-1".into()), term: 2 });
        recorder.note(What::Leader { instance: None, term: 2 });
        recorder.note(What::Owner { account: "telegram:main".into(), instance: None, token: 7 });
        let read = recorder.invoke(3, Call::Read { session: "s".into(), instance: 2, after: 0, limit: 20 });
        let answer = Answer::Read { head: 2, tail: vec![(1, "t".into()), (2, "u".into())] };
        recorder.note(What::Ok { op: read, attempts: 1, answer });
        let (session, label, instance) = ("s".to_owned(), "c3-0".to_owned(), 1);
        for (call, answer) in [
            (
                Call::Get { session: session.clone(), instance },
                Answer::Register { label: None, revision: 0, index: None },
            ),
            (
                Call::Set { session: session.clone(), label: label.clone(), instance },
                Answer::Register { label: Some(label.clone()), revision: 7, index: Some(7) },
            ),
            (Call::Cas { session, from: None, revision: 0, label, instance }, Answer::Mismatch { index: Some(8) }),
        ] {
            let op = recorder.invoke(recorder.process(), call);
            recorder.note(What::Ok { op, attempts: 1, answer });
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        save(file.path(), &recorder.events()).unwrap();
        assert_eq!(load(file.path()).unwrap(), recorder.events());
        let text = std::fs::read_to_string(file.path()).unwrap();
        assert!(text.lines().next().unwrap().contains(r#""type":"invoke","op":0,"process":3,"f":"append""#), "{text}");
        let last: Vec<&str> = text.lines().rev().take(2).collect();
        assert!(
            last[1].contains(r#""f":"cas","session":"s","from":null,"revision":0,"label":"c3-0","instance":1}"#),
            "{text}"
        );
        assert!(last[0].contains(r#""answer":"mismatch","index":8}"#), "{text}");
    }

    const LINE: &str = "{\"at_us\":1,\"type\":\"leader\",\"instance\":null,\"term\":1}";

    fn written(bytes: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    #[test]
    fn a_history_is_in_its_file_before_the_run_is_over() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let recorder = Recorder::writing(file.path()).unwrap();
        let fault = || recorder.fault(1, "kill-all", Phase::Begin, "");
        fault();
        recorder.inner.lock().unwrap().journal.as_mut().unwrap().flushed -= 2 * FLUSH_EVERY;
        fault();
        assert_eq!(load(file.path()).unwrap(), recorder.events(), "a second has passed");
        fault();
        recorder.close().unwrap();
        assert_eq!(load(file.path()).unwrap().len(), 3);
        fault();
        assert_eq!((load(file.path()).unwrap().len(), recorder.events().len()), (3, 4));
    }

    #[test]
    fn a_damaged_line_is_named() {
        let file = written(format!("{LINE}\n{{").as_bytes());
        assert!(load(file.path()).unwrap_err().to_string().contains("line 2"));
        let file = written(format!("{LINE}\nx\n{LINE}\n").as_bytes());
        assert!(load_cut(file.path()).unwrap_err().to_string().contains("line 2"));
    }

    #[test]
    fn a_last_line_that_was_not_finished_is_forgiven_to_who_asks_for_that() {
        let mut bytes = format!("{LINE}\n{{\"at_us\":2,\"type\":\"fail\",\"message\":\"\u{fc}").into_bytes();
        bytes.pop();
        let Loaded { events, cut } = load_cut(written(&bytes).path()).unwrap();
        assert_eq!((events.len(), cut), (1, Some(2)));
        let Loaded { events, cut } = load_cut(written(LINE.as_bytes()).path()).unwrap();
        assert_eq!((events.len(), cut), (1, None), "it lacks only the end of its line");
        assert!(load_cut(written(b"{\"at_us\":1}\n").path()).is_err(), "it was finished, and is not an event");
    }
}
