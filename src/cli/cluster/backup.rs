//! `openclaw cluster backup`: all that the cluster holds, in one file; and what such a file holds.
//!
//! The file has its name only once it is whole, on disk, and was read back. It holds conversations, so only its owner may
//! read it.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use openclaw_config::ByteCount;
use openclaw_proto::raft as pb;
use openclaw_raft::OpenError;
use openclaw_raft::backup::{self, BackupError, BackupReader, OfflineError, Stamp};
use openclaw_raft::state_machine::Table as Rows;
use serde::Serialize;
use tempfile::NamedTempFile;
use tokio_util::sync::CancellationToken;

use crate::cli::client::Client;
use crate::cli::exit::{Exit, Failure};
use crate::cli::interrupt;
use crate::cli::output::{self, Align, Table, facts, note};
use crate::cli::settings;
use crate::cli::target::Connection;

/// Write all that the cluster holds into one file, which `cluster restore` makes a new cluster of
///
/// Any instance can give a backup, while it works: the state at one moment, with all that was acknowledged before. The file
/// holds conversations in clear; it is made for its owner alone (mode 0600).
#[derive(Debug, Args)]
// `args_conflicts_with_subcommands` would count the global --json: see `Backup::verify_alone`.
#[command(subcommand_negates_reqs = true)]
pub(super) struct Backup {
    #[command(subcommand)]
    command: Option<Command>,
    /// File to write; `-`: standard output, which is not read back
    #[arg(required = true, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Replace the file if it exists
    #[arg(long)]
    force: bool,
    /// Most bytes per second, as 20MiB: the slower, the less writers notice
    #[arg(long, value_name = "BYTES")]
    limit_rate: Option<ByteCount>,
    /// What this instance has, when there is no quorum to ask: it may lack what was acknowledged last
    #[arg(long)]
    stale: bool,
    /// Read the data directory of an instance that is stopped, and ask nobody: it may lack what only others had
    // Not with "url" too: OPENCLAW_URL would count as if it had been typed.
    #[arg(long, conflicts_with = "stale")]
    offline: bool,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Read a backup to its end, check it, and say what is in it
    Verify {
        /// File to read; `-`: standard input
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

impl Backup {
    /// What makes a backup says nothing about one that is read.
    fn verify_alone(&self) -> Result<(), Failure> {
        let connection = &self.connection;
        let named = [
            (self.file.is_some(), "FILE"),
            (self.force, "--force"),
            (self.limit_rate.is_some(), "--limit-rate"),
            (self.stale, "--stale"),
            (self.offline, "--offline"),
            (url_is_typed(connection), "--url"),
            (connection.instance_id.is_some(), "--instance-id"),
            (connection.data_dir.is_some(), "--data-dir"),
            (connection.config.is_some(), "--config"),
            (connection.token_file.is_some(), "--token-file"),
        ];
        match named.into_iter().find(|(given, _)| *given) {
            Some((_, what)) => {
                Err(Failure::usage(format!("{what} before `verify` says nothing: it reads a file, and asks nobody")))
            }
            None => Ok(()),
        }
    }
}

/// And not the environment's.
fn url_is_typed(connection: &Connection) -> bool {
    let given = connection.url.join(",");
    !given.is_empty() && std::env::var("OPENCLAW_URL").ok() != Some(given)
}

/// What a backup holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Contents {
    pub(super) cluster_id: String,
    instance_id: String,
    source: &'static str,
    /// Log entries of a stopped instance that it had not applied itself.
    replayed: u64,
    taken_ms: u64,
    release: String,
    applied_index: u64,
    applied_term: u64,
    rows: u64,
    tables: Vec<Counted>,
    /// As `cluster/state-hash` of an instance with the same applied index.
    state_sha256: String,
    /// Of the rows that a restore leaves as they are.
    pub(super) kept_sha256: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Counted {
    table: &'static str,
    rows: u64,
    bytes: u64,
}

impl Contents {
    pub(super) fn of(header: &pb::BackupHeader, trailer: &pb::BackupTrailer) -> Self {
        let applied = header.applied.unwrap_or_default();
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let name = |tag: u32| u8::try_from(tag).ok().and_then(Rows::from_tag).map_or("unknown", Rows::name);
        Self {
            cluster_id: header.cluster_id.clone(),
            instance_id: header.instance_id.clone(),
            source: match header.source() {
                pb::BackupSource::Linearizable => "cluster",
                pb::BackupSource::Local => "instance alone",
                pb::BackupSource::Stopped => "stopped instance",
                pb::BackupSource::Unspecified => "unknown",
            },
            replayed: header.replayed,
            taken_ms: header.taken_ms,
            release: header.release.clone(),
            applied_index: applied.index,
            applied_term: applied.term,
            rows: trailer.tables.iter().map(|table| table.rows).sum(),
            tables: trailer
                .tables
                .iter()
                .map(|table| Counted { table: name(table.tag), rows: table.rows, bytes: table.bytes })
                .collect(),
            state_sha256: hex(&trailer.state_sha256),
            kept_sha256: hex(&trailer.kept_sha256),
        }
    }

    pub(super) fn render(&self) -> String {
        let taken = i64::try_from(self.taken_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
        let source = match (self.source, self.replayed) {
            ("cluster", _) => "all that was acknowledged before".to_owned(),
            ("instance alone", _) => "what this instance had; others may have had more".to_owned(),
            (_, 0) => "a stopped instance's directory; others may have had more".to_owned(),
            (_, n) => format!("a stopped instance's directory, with {n} entries of its log; others may have had more"),
        };
        let mut text = facts([
            ("cluster", self.cluster_id.clone()),
            ("from", format!("{}, release {}", self.instance_id, self.release)),
            ("taken", taken.map_or_else(|| format!("{} ms", self.taken_ms), |taken| format!("{taken:.0}"))),
            ("holds", source),
            ("log index", format!("{} of term {}", self.applied_index, self.applied_term)),
            ("state hash", self.state_sha256.clone()),
            ("kept hash", self.kept_sha256.clone()),
        ]);
        text.push('\n');
        let mut table = Table::new([("TABLE", Align::Left), ("ROWS", Align::Right), ("BYTES", Align::Right)]);
        for counted in &self.tables {
            table.row([counted.table.to_owned(), counted.rows.to_string(), counted.bytes.to_string()]);
        }
        text.push_str(&table.render());
        text
    }
}

/// What was written.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    file: PathBuf,
    bytes: u64,
    took_ms: u64,
    #[serde(flatten)]
    contents: Contents,
}

pub(super) async fn run(arguments: Backup, json: bool) -> Result<Exit, Failure> {
    if let Some(Command::Verify { file }) = &arguments.command {
        arguments.verify_alone()?;
        let contents = verify(file)?;
        output::answer(json, &contents, || contents.render())?;
        return Ok(Exit::Ok);
    }
    let Some(file) = arguments.file.clone() else {
        return Err(Failure::usage("say where the backup goes: FILE, or - for standard output"));
    };
    if arguments.offline && url_is_typed(&arguments.connection) {
        return Err(Failure::usage("--offline asks nobody, so --url says nothing"));
    }
    let stop = CancellationToken::new();
    if file == Path::new("-") {
        // There is nothing to clear away, so signals do what they do to any part of a pipe.
        return to_stdout(&arguments, json, &stop).await;
    }
    interrupt::or_signal(to_file(&arguments, &file, json, &stop), &stop, "nothing was written").await
}

async fn to_stdout(arguments: &Backup, json: bool, stop: &CancellationToken) -> Result<Exit, Failure> {
    if io::stdout().is_terminal() {
        return Err(Failure::usage("a terminal cannot take a backup").hint("name a file, or pipe it on"));
    }
    if json {
        return Err(Failure::usage("--json and the backup cannot both be standard output"));
    }
    let to = BufWriter::with_capacity(BUFFER_BYTES, io::stdout());
    copy(arguments, to, stop).await.map_err(|mut failure| {
        failure.details.push("what went to standard output, if anything did, is not a whole backup".to_owned());
        failure
    })?;
    Ok(Exit::Ok)
}

async fn to_file(arguments: &Backup, file: &Path, json: bool, stop: &CancellationToken) -> Result<Exit, Failure> {
    if !arguments.force && file.symlink_metadata().is_ok() {
        return Err(exists(file));
    }
    let began = Instant::now();
    let place = Place::beside(file)?;
    let to = place.file.as_file().try_clone().map_err(|error| place.failed(&error))?;
    copy(arguments, BufWriter::with_capacity(BUFFER_BYTES, to), stop).await?;
    let written = place.finish(arguments.force, stop).await?;
    let report = Report {
        file: file.to_owned(),
        bytes: written.bytes,
        took_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        contents: written.contents,
    };
    output::answer(json, &report, || {
        format!(
            "{}\n{} bytes in {}, read back and right; it holds conversations: keep it safe\n",
            report.contents.render(),
            report.bytes,
            output::span(report.took_ms)
        )
    })?;
    Ok(Exit::Ok)
}

fn exists(file: &Path) -> Failure {
    Failure::new(Exit::Refused, format!("{} exists", file.display())).hint("name another file, or give --force")
}

const BUFFER_BYTES: usize = 256 * 1024;

/// A file without its name yet; it is removed with this, whoever still writes into it.
struct Place<'a> {
    file: NamedTempFile,
    target: &'a Path,
    parent: &'a Path,
}

struct Written {
    bytes: u64,
    contents: Contents,
}

impl<'a> Place<'a> {
    fn beside(target: &'a Path) -> Result<Self, Failure> {
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            Some(_) | None => Path::new("."),
        };
        let name = target.file_name().ok_or_else(|| Failure::usage(format!("{} is no file", target.display())))?;
        let prefix = format!(".{}.", name.to_string_lossy());
        // Only its owner may read it: the crate makes it so.
        let file = tempfile::Builder::new()
            .prefix(&prefix)
            .suffix(".unfinished")
            .tempfile_in(parent)
            .map_err(|error| Failure::failed(format!("no file can be made in {}: {error}", parent.display())))?;
        Ok(Self { file, target, parent })
    }

    fn failed(&self, error: &io::Error) -> Failure {
        Failure::failed(format!("{} cannot be written: {error}", self.target.display()))
    }

    /// Puts it on disk, reads it back, and gives it its name.
    async fn finish(self, force: bool, stop: &CancellationToken) -> Result<Written, Failure> {
        let written = self.file.as_file().try_clone().map_err(|error| self.failed(&error))?;
        let again = self.file.reopen().map_err(|error| self.failed(&error))?;
        let again = Heeding { inner: again, stop: stop.clone() };
        let looked = on_a_thread(move || -> io::Result<_> {
            written.sync_all()?;
            Ok((written.metadata()?.len(), read(again)))
        });
        let (bytes, contents) = looked.await?.map_err(|error| self.failed(&error))?;
        let contents = contents.map_err(|error| {
            Failure::failed(format!("what came is not a whole backup: {error}")).hint("nothing was written, try again")
        })?;
        let (target, parent) = (self.target, self.parent);
        let named = if force { self.file.persist(target) } else { self.file.persist_noclobber(target) };
        named.map_err(|error| {
            if error.error.kind() == io::ErrorKind::AlreadyExists {
                exists(target)
            } else {
                Failure::failed(format!("{} cannot be made: {}", target.display(), error.error))
            }
        })?;
        File::open(parent)
            .and_then(|parent| parent.sync_all())
            .map_err(|error| Failure::failed(format!("{}: {error}", parent.display())))?;
        Ok(Written { bytes, contents })
    }
}

/// Brings a backup from wherever it comes, until `stop`.
async fn copy(arguments: &Backup, to: impl Write + Send + 'static, stop: &CancellationToken) -> Result<(), Failure> {
    let to = Paced::new(to, arguments.limit_rate);
    if arguments.offline {
        return offline(arguments, Heeding { inner: to, stop: stop.clone() }).await;
    }
    tokio::select! {
        done = online(arguments, to) => done,
        () = stop.cancelled() => Err(Failure::silent(Exit::Interrupted)),
    }
}

async fn online(arguments: &Backup, mut to: Paced<impl Write>) -> Result<(), Failure> {
    let client = Client::new(&arguments.connection)?;
    let query: &[(&str, String)] = if arguments.stale { &[("consistency", "stale".into())] } else { &[] };
    let mut response = client.open(&["api", "v1", "cluster", "backup"], query).await?;
    while let Some(piece) = client.piece(&mut response).await? {
        to.write_all(&piece).map_err(unwritable)?;
        tokio::time::sleep_until(to.due().into()).await;
    }
    to.flush().map_err(unwritable)
}

fn unwritable(error: io::Error) -> Failure {
    Failure::failed(format!("the backup cannot be written: {error}"))
}

async fn offline(arguments: &Backup, mut to: Heeding<Paced<impl Write + Send + 'static>>) -> Result<(), Failure> {
    let settings = settings::local(&arguments.connection)?;
    let Some(instance) = settings.instance_id else {
        return Err(Failure::usage("whose directory? --offline needs the instance's name")
            .hint("give --instance-id (or OPENCLAW_INSTANCE_ID)"));
    };
    let dir = settings.data_dir.join(instance.as_str());
    let stamp = Stamp { taken_ms: output::now_ms(), release: env!("CARGO_PKG_VERSION").to_owned() };
    let made = on_a_thread(move || backup::of_stopped(&dir, &stamp, &mut to).map(|_| to.flush())).await?;
    let flushed = made.map_err(|error| {
        let text = error.to_string();
        match error {
            OfflineError::Open(OpenError::Locked { .. }) => {
                Failure::new(Exit::InUse, text).hint("leave --offline out to ask the instance that runs")
            }
            OfflineError::Open(_) | OfflineError::Storage { .. } => Failure::new(Exit::Storage, text),
            OfflineError::NoInstance { .. } => Failure::new(Exit::Usage, text)
                .hint("--data-dir is the directory above the instance's own, as for `openclaw gateway`"),
            OfflineError::TooFarBehind | OfflineError::Backup(_) => Failure::failed(text),
        }
    })?;
    flushed.map_err(unwritable)
}

/// Signals are seen to while it lasts.
pub(super) async fn on_a_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Failure::failed(format!("it broke off: {error}")))
}

/// Reads and writes on a thread of its own, until `stop`.
struct Heeding<T> {
    inner: T,
    stop: CancellationToken,
}

impl<T> Heeding<T> {
    fn go_on(&self) -> io::Result<()> {
        if self.stop.is_cancelled() { Err(io::Error::other("interrupted")) } else { Ok(()) }
    }
}

/// Of a pause; between two of them `stop` is heeded.
const STEP: Duration = Duration::from_millis(50);

impl<W: Write> Write for Heeding<Paced<W>> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            self.go_on()?;
            let left = self.inner.due().saturating_duration_since(Instant::now());
            if left.is_zero() {
                return self.inner.write(bytes);
            }
            std::thread::sleep(left.min(STEP));
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Heeding<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.go_on()?;
        self.inner.read(bytes)
    }
}

/// Counts what goes through, tells of it, and says when the next piece is due.
struct Paced<W> {
    to: W,
    rate: Option<u64>,
    bytes: u64,
    began: Instant,
    told: Instant,
    terminal: bool,
}

/// Between two words about progress.
const TELL_EVERY: Duration = Duration::from_secs(2);

impl<W: Write> Paced<W> {
    fn new(to: W, rate: Option<ByteCount>) -> Self {
        let now = Instant::now();
        let terminal = io::stderr().is_terminal();
        Self { to, rate: rate.map(|rate| rate.0.max(1)), bytes: 0, began: now, told: now, terminal }
    }

    fn due(&self) -> Instant {
        let taken = self.rate.map_or(0.0, |rate| self.bytes as f64 / rate as f64);
        self.began + Duration::from_secs_f64(taken)
    }

    fn tell(&mut self) {
        if self.told.elapsed() < TELL_EVERY {
            return;
        }
        self.told = Instant::now();
        let (mib, seconds) = (self.bytes as f64 / f64::from(1 << 20), self.began.elapsed().as_secs_f64());
        let text = format!("backup: {mib:.0} MiB, {:.1} MiB/s", mib / seconds.max(0.001));
        if self.terminal {
            // Over itself; whatever comes next begins a line.
            drop(write!(io::stderr().lock(), "\r{text}    \r"));
        } else {
            note(&text);
        }
    }
}

impl<W: Write> Write for Paced<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.bytes += written as u64;
        self.tell();
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

fn verify(file: &Path) -> Result<Contents, Failure> {
    let contents = match file == Path::new("-") {
        true => read(io::stdin().lock()),
        false => read(open(file)?),
    };
    contents.map_err(|error| unreadable(file, &error))
}

pub(super) fn open(file: &Path) -> Result<File, Failure> {
    File::open(file).map_err(|error| Failure::failed(format!("{} cannot be read: {error}", file.display())))
}

/// Why a backup is of no use.
pub(super) fn unreadable(file: &Path, error: &BackupError) -> Failure {
    let exit = if error.is_damage() { Exit::Storage } else { Exit::Failed };
    Failure::new(exit, format!("{}: {error}", file.display()))
}

fn read(from: impl Read) -> Result<Contents, BackupError> {
    let mut reader = BackupReader::new(BufReader::with_capacity(256 * 1024, from))?;
    let trailer = reader.verify()?;
    Ok(Contents::of(reader.header(), &trailer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_says_what_it_holds_and_what_it_may_lack() {
        let header = pb::BackupHeader {
            cluster_id: "oc-1".into(),
            instance_id: "node-2".into(),
            applied: Some(pb::LogId { term: 3, index: 1204 }),
            taken_ms: 1_760_000_000_000,
            release: "0.1.0".into(),
            source: pb::BackupSource::Stopped.into(),
            replayed: 12,
        };
        let table = |tag, rows, bytes| pb::BackupTable { tag, rows, bytes };
        let trailer = pb::BackupTrailer {
            tables: vec![table(1, 2, 300), table(2, 40, 9000)],
            state_sha256: vec![0xab; 3].into(),
            kept_sha256: vec![0xcd; 3].into(),
        };
        insta::assert_snapshot!(Contents::of(&header, &trailer).render(), @r"
        cluster     oc-1
        from        node-2, release 0.1.0
        taken       2025-10-09T08:53:20Z
        holds       a stopped instance's directory, with 12 entries of its log; others may have had more
        log index   1204 of term 3
        state hash  ababab
        kept hash   cdcdcd

        TABLE     ROWS  BYTES
        sessions     2    300
        entries     40   9000
        ");
    }

    #[test]
    fn a_rate_says_when_the_next_piece_is_due() {
        let mut paced = Paced::new(Vec::new(), Some(ByteCount(1000)));
        paced.write_all(&[0; 500]).unwrap();
        assert_eq!(paced.due() - paced.began, Duration::from_millis(500));
        let mut free = Paced::new(Vec::new(), None);
        free.write_all(&[0; 500]).unwrap();
        assert_eq!(free.due(), free.began);
    }
}
