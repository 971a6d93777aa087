//! `openclaw sessions`: conversations as an operator sees them.

mod transcript;

use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use openclaw_proto::http::{self, Role};
use openclaw_proto::ids::{IdempotencyKey, SessionKey};

use super::client::Client;
use super::exit::{Exit, Failure};
use super::output::{self, Align, Table, facts, note, or_dash, printable, span};
use super::target::Connection;

/// List, read, name, export and delete conversations
#[derive(Debug, Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(super) struct Sessions {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List sessions
    List {
        /// Most sessions to list
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        limit: u32,
        #[command(flatten)]
        connection: Connection,
    },
    /// Show one session and its latest entries
    Show {
        /// Session key, as `sessions list` prints it
        #[arg(value_parser = SessionKey::from_caller)]
        key: SessionKey,
        /// Latest entries to show
        #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
        entries: u32,
        #[command(flatten)]
        connection: Connection,
    },
    /// Set a session's label, its model or both; an empty text clears
    Set {
        /// Session key, as `sessions list` prints it
        #[arg(value_parser = SessionKey::from_caller)]
        key: SessionKey,
        /// A name for people
        #[arg(long, value_name = "TEXT", required_unless_present = "model")]
        label: Option<String>,
        /// The model of its turns from now on
        #[arg(long, value_name = "PROVIDER/MODEL")]
        model: Option<String>,
        /// Only if this is the session's revision still, as `sessions show` prints it
        #[arg(long, value_name = "REVISION")]
        if_revision: Option<u64>,
        #[command(flatten)]
        connection: Connection,
    },
    /// Write a session's whole transcript, in upstream OpenClaw's event format (version 3)
    Export {
        /// Session key, as `sessions list` prints it
        #[arg(value_parser = SessionKey::from_caller)]
        key: SessionKey,
        /// One event per line, or one JSON array
        #[arg(long, value_enum, default_value_t = Format::Jsonl)]
        format: Format,
        /// File to write, which must not exist yet [default: stdout]
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
        #[command(flatten)]
        connection: Connection,
    },
    /// Delete a session with all its entries, on every instance
    Delete {
        /// Session key, as `sessions list` prints it
        #[arg(value_parser = SessionKey::from_caller)]
        key: SessionKey,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
        #[command(flatten)]
        connection: Connection,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Jsonl,
    Json,
}

/// Sessions, or entries, asked for at once.
pub(super) const PAGE: u32 = 100;

pub(super) async fn run(arguments: Sessions, json: bool) -> Result<Exit, Failure> {
    match arguments.command {
        Command::List { limit, connection } => list(&Client::new(&connection)?, limit, json).await,
        Command::Show { key, entries, connection } => show(&Client::new(&connection)?, &key, entries, json).await,
        Command::Set { key, label, model, if_revision, connection } => {
            let given = |text: Option<String>| text.map(|text| (!text.is_empty()).then_some(text));
            let update = http::UpdateSessionRequest { label: given(label), model: given(model) };
            set(&Client::new(&connection)?, &key, &update, if_revision, json).await
        }
        Command::Export { key, format, output, connection } => {
            export(&Client::new(&connection)?, &key, format, output.as_deref()).await
        }
        Command::Delete { key, yes, connection } => {
            if !yes && (json || !io::stdin().is_terminal()) {
                return Err(Failure::usage("deleting a session cannot be undone").hint("confirm it with --yes"));
            }
            delete(&Client::new(&connection)?, &key, yes, json).await
        }
    }
}

pub(super) async fn page(client: &Client, limit: u32, cursor: Option<String>) -> Result<http::SessionList, Failure> {
    let mut query = vec![("limit", limit.to_string())];
    query.extend(cursor.map(|cursor| ("cursor", cursor)));
    client.get(&["api", "v1", "sessions"], &query).await
}

async fn session(client: &Client, key: &SessionKey) -> Result<http::Session, Failure> {
    client.get(&["api", "v1", "sessions", key.as_str()], &[]).await
}

async fn entries(client: &Client, key: &SessionKey, after: u64, limit: u32) -> Result<http::EntryList, Failure> {
    let query = [("after", after.to_string()), ("limit", limit.to_string())];
    client.get(&["api", "v1", "sessions", key.as_str(), "entries"], &query).await
}

async fn list(client: &Client, limit: u32, json: bool) -> Result<Exit, Failure> {
    let mut found = http::SessionList::default();
    loop {
        let left = limit.saturating_sub(u32::try_from(found.sessions.len()).unwrap_or(u32::MAX));
        let page = page(client, left.min(PAGE), found.next_cursor.take()).await?;
        found.sessions.extend(page.sessions);
        found.next_cursor = page.next_cursor;
        if found.next_cursor.is_none() || found.sessions.len() >= limit as usize {
            break;
        }
    }
    if json {
        output::print_json(&found)?;
        return Ok(Exit::Ok);
    }
    output::print(&table(&found.sessions, output::now_ms()).render())?;
    if found.next_cursor.is_some() {
        note(&format!("the first {limit}; there are more: raise --limit"));
    }
    Ok(Exit::Ok)
}

fn table(sessions: &[http::Session], now_ms: u64) -> Table {
    let mut table = Table::new([
        ("SESSION", Align::Left),
        ("LABEL", Align::Left),
        ("AGENT", Align::Left),
        ("MODEL", Align::Left),
        ("ENTRIES", Align::Right),
        ("TURNS", Align::Right),
        ("TOKENS", Align::Right),
        ("UPDATED", Align::Right),
        ("STATE", Align::Left),
    ]);
    for session in sessions {
        table.row([
            session.session_key.clone(),
            or_dash(session.label.as_deref()),
            session.agent_id.clone(),
            or_dash(session.model.as_deref()),
            session.head_seq.to_string(),
            session.turn_count.to_string(),
            session.usage.total_tokens.to_string(),
            format!("{} ago", span(now_ms.saturating_sub(session.updated_ms))),
            activity(session),
        ]);
    }
    table
}

fn activity(session: &http::Session) -> String {
    match (&session.running_turn, session.queued_turns.len()) {
        (None, 0) => "idle".to_owned(),
        (Some(_), 0) => "running".to_owned(),
        (_, waiting) => format!("running, {waiting} waiting"),
    }
}

async fn show(client: &Client, key: &SessionKey, count: u32, json: bool) -> Result<Exit, Failure> {
    let session = session(client, key).await?;
    let mut found = Vec::new();
    let mut after = session.head_seq.saturating_sub(u64::from(count));
    while after < session.head_seq {
        let page = entries(client, key, after, PAGE).await?;
        let Some(last) = page.entries.last() else { break };
        after = last.seq;
        found.extend(page.entries);
    }
    if json {
        output::print_json(&serde_json::json!({ "session": session, "entries": found }))?;
    } else {
        output::print(&render(&session, &found, output::now_ms()))?;
    }
    Ok(Exit::Ok)
}

fn render(session: &http::Session, entries: &[http::Entry], now_ms: u64) -> String {
    let ago = |ms: u64| format!("{} ({} ago)", transcript::iso(ms), span(now_ms.saturating_sub(ms)));
    let mut lines = vec![
        ("session", session.session_key.clone()),
        ("label", or_dash(session.label.as_deref())),
        ("agent", session.agent_id.clone()),
        ("model", session.model.clone().unwrap_or_else(|| "the agent's own".to_owned())),
        ("revision", session.revision.to_string()),
        ("created", ago(session.created_ms)),
        ("updated", ago(session.updated_ms)),
        ("entries", session.head_seq.to_string()),
    ];
    if session.reset_seq > 0 {
        lines.push(("reset at", format!("entry {}: earlier ones are not shown to the model", session.reset_seq)));
    }
    let usage = session.usage;
    lines.push(("tokens", format!("{} in, {} out", usage.input_tokens, usage.output_tokens)));
    lines.push(("turns", format!("{}, {}", session.turn_count, activity(session))));
    let mut text = facts(lines);
    for entry in entries {
        let model = entry.model.as_ref().map_or_else(String::new, |model| format!(" ({model})"));
        let head = format!("{} {}{model}, {}", entry.seq, role(entry.role), transcript::iso(entry.created_ms));
        text.push_str(&format!("\n{}\n{}\n", printable(&head), printable(entry.text.trim_end())));
    }
    text
}

async fn set(
    client: &Client,
    key: &SessionKey,
    update: &http::UpdateSessionRequest,
    revision: Option<u64>,
    json: bool,
) -> Result<Exit, Failure> {
    let path = ["api", "v1", "sessions", key.as_str()];
    let session: http::Session = client.patch(&path, IdempotencyKey::random().as_str(), revision, update).await?;
    output::answer(json, &session, || format!("{key} is at revision {} now\n", session.revision))?;
    Ok(Exit::Ok)
}

pub(super) fn role(role: Role) -> &'static str {
    match role {
        Role::User => "user",
        Role::Assistant => "assistant",
        Role::System => "system",
        Role::Tool => "tool",
    }
}

async fn export(client: &Client, key: &SessionKey, format: Format, file: Option<&Path>) -> Result<Exit, Failure> {
    let session = session(client, key).await?;
    match file {
        None => copy(client, &session, key, format, &mut BufWriter::new(io::stdout().lock())).await?,
        Some(path) => {
            let fail = |error: io::Error| Failure::failed(format!("{}: {error}", path.display()));
            let file = std::fs::File::options().write(true).create_new(true).open(path).map_err(fail)?;
            let mut writer = BufWriter::new(file);
            copy(client, &session, key, format, &mut writer).await?;
            writer.get_ref().sync_all().map_err(fail)?;
            note(&format!("{} entries written to {}", session.head_seq, path.display()));
        }
    }
    Ok(Exit::Ok)
}

/// Page by page, so that a long session takes no more memory than a short one.
async fn copy(
    client: &Client,
    session: &http::Session,
    key: &SessionKey,
    format: Format,
    writer: &mut impl Write,
) -> Result<(), Failure> {
    let mut events = EventWriter { writer, format, written: 0 };
    events.write(&transcript::header(session))?;
    let (mut after, mut parent) = (0, None);
    // Entries appended while we read are left out: the export is the session as it was when it began.
    while after < session.head_seq {
        let page = entries(client, key, after, PAGE).await?;
        let Some(last) = page.entries.last() else { break };
        after = last.seq;
        for entry in page.entries.iter().filter(|entry| entry.seq <= session.head_seq) {
            events.write(&transcript::event(entry, parent.as_deref()))?;
            parent = Some(entry.id.clone());
        }
    }
    events.end()
}

struct EventWriter<'a, W> {
    writer: &'a mut W,
    format: Format,
    written: usize,
}

impl<W: Write> EventWriter<'_, W> {
    fn write(&mut self, event: &serde_json::Value) -> Result<(), Failure> {
        let before = match (self.format, self.written) {
            (Format::Jsonl, _) => "",
            (Format::Json, 0) => "[\n",
            (Format::Json, _) => ",\n",
        };
        let after = if self.format == Format::Jsonl { "\n" } else { "" };
        self.written += 1;
        write!(self.writer, "{before}{event}{after}").map_err(output::unwritable)
    }

    fn end(self) -> Result<(), Failure> {
        if self.format == Format::Json {
            self.writer.write_all(b"\n]\n").map_err(output::unwritable)?;
        }
        self.writer.flush().map_err(output::unwritable)
    }
}

async fn delete(client: &Client, key: &SessionKey, yes: bool, json: bool) -> Result<Exit, Failure> {
    if !yes {
        let session = session(client, key).await?;
        if !confirmed(&format!("Delete {key} with {} entries? [y/N] ", session.head_seq))? {
            return Err(Failure::failed("nothing was deleted"));
        }
    }
    let path = ["api", "v1", "sessions", key.as_str()];
    let deleted: http::DeleteResponse = client.delete(&path, IdempotencyKey::random().as_str()).await?;
    output::answer(json, &deleted, || format!("deleted {key} with {} entries\n", deleted.entry_count))?;
    Ok(Exit::Ok)
}

fn confirmed(question: &str) -> Result<bool, Failure> {
    output::print(&printable(question))?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(|error| Failure::failed(format!("stdin cannot be read: {error}")))?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn example() -> http::Session {
        http::Session {
            session_key: "agent:main:main".into(),
            agent_id: "main".into(),
            label: None,
            model: None,
            revision: 0,
            created_ms: 1_780_000_000_000,
            updated_ms: 1_780_000_060_000,
            head_seq: 2,
            reset_seq: 0,
            turn_count: 1,
            usage: http::Usage { input_tokens: 10, output_tokens: 5, total_tokens: 15 },
            running_turn: None,
            queued_turns: Vec::new(),
        }
    }

    pub(super) fn entry(seq: u64, role: Role, text: &str) -> http::Entry {
        http::Entry {
            seq,
            id: format!("{seq:08x}"),
            role,
            text: text.into(),
            created_ms: 1_780_000_000_000 + seq,
            turn_id: None,
            model: (role == Role::Assistant).then(|| "echo/echo".into()),
            usage: None,
        }
    }

    #[test]
    fn the_list_is_a_table() {
        let mut busy = example();
        busy.session_key = "agent:main:telegram:direct:7".into();
        busy.label = Some("Ann".into());
        busy.running_turn = Some("t".into());
        busy.queued_turns = vec!["u".into(), "v".into()];
        insta::assert_snapshot!(table(&[example(), busy], 1_780_000_180_000).render(), @r"
        SESSION                       LABEL  AGENT  MODEL  ENTRIES  TURNS  TOKENS    UPDATED  STATE
        agent:main:main               -      main   -            2      1      15  2 min ago  idle
        agent:main:telegram:direct:7  Ann    main   -            2      1      15  2 min ago  running, 2 waiting
        ");
    }

    #[test]
    fn a_shown_session_cannot_drive_the_terminal() {
        let entries = [entry(1, Role::User, "hi\x1b[2J\n"), entry(2, Role::Assistant, "hi")];
        insta::assert_snapshot!(render(&example(), &entries, 1_780_000_060_500), @r"
        session   agent:main:main
        label     -
        agent     main
        model     the agent's own
        revision  0
        created   2026-05-28T20:26:40.000Z (60 s ago)
        updated   2026-05-28T20:27:40.000Z (500 ms ago)
        entries   2
        tokens    10 in, 5 out
        turns     1, idle

        1 user, 2026-05-28T20:26:40.001Z
        hi�[2J

        2 assistant (echo/echo), 2026-05-28T20:26:40.002Z
        hi
        ");
    }

    #[test]
    fn json_and_jsonl_hold_the_same_events() {
        let written = |format| {
            let mut bytes = Vec::new();
            let mut events = EventWriter { writer: &mut bytes, format, written: 0 };
            events.write(&serde_json::json!({ "a": 1 })).unwrap();
            events.write(&serde_json::json!({ "b": 2 })).unwrap();
            events.end().unwrap();
            String::from_utf8(bytes).unwrap()
        };
        assert_eq!(written(Format::Jsonl), "{\"a\":1}\n{\"b\":2}\n");
        assert_eq!(written(Format::Json), "[\n{\"a\":1},\n{\"b\":2}\n]\n");
    }
}
