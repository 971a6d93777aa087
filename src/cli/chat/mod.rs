//! `openclaw chat`: a conversation in the terminal, streamed, that outlives the instance it talks to.

mod sse;
mod turn;

use std::io::{self, BufRead, IsTerminal, Read};
use std::time::{Duration, Instant};

use clap::Args;
use openclaw_config::ModelRef;
use openclaw_proto::http::{ChatRequest, ChatResponse};
use openclaw_proto::ids::{AgentId, SessionKey};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::client::{Asked, Client};
use super::exit::{Exit, Failure};
use super::output::{self, colours, note, printable};
use super::target::Connection;
use turn::{Seen, Turn};

/// Talk with an agent: in the terminal, or one message from --message or standard input
///
/// The answer streams. When the connection breaks or the instance dies, the conversation goes on by itself, at the
/// next of the given URLs if there are several. Ctrl-C stops an answer, Ctrl-D ends the conversation; a line that
/// ends with a backslash continues on the next.
#[derive(Debug, Args)]
pub(super) struct Chat {
    /// Send this one message, print the reply and end
    #[arg(long, short, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    message: Option<String>,
    /// Conversation to talk in [default: the agent's main one]
    #[arg(long, short, value_name = "KEY", value_parser = SessionKey::from_caller)]
    session: Option<SessionKey>,
    /// Model to ask, as PROVIDER/MODEL [default: the agent's own]
    #[arg(long, value_name = "MODEL")]
    model: Option<ModelRef>,
    /// Agent to talk with [default: the gateway's default agent]
    #[arg(long, value_name = "AGENT")]
    agent: Option<AgentId>,
    /// Longest time to try again without progress when the connection breaks, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(0..=3600))]
    patience: u64,
    #[command(flatten)]
    connection: Connection,
}

/// Longer than a gateway accepts by default; read no further.
const MAX_MESSAGE_BYTES: usize = 1024 * 1024;

pub(super) async fn run(arguments: Chat, json: bool) -> Result<Exit, Failure> {
    let client = Client::new(&arguments.connection)?;
    let mut conversation = Conversation {
        client,
        patience: Duration::from_secs(arguments.patience),
        request: ChatRequest {
            session_key: arguments.session.map(String::from),
            message: String::new(),
            agent_id: arguments.agent.map(String::from),
            model: arguments.model.map(|model| model.to_string()),
            user: None,
        },
        place: 0,
        known: false,
        interrupts: signal(SignalKind::interrupt())
            .map_err(|error| Failure::failed(format!("Ctrl-C cannot be watched: {error}")))?,
    };
    let interactive = arguments.message.is_none() && io::stdin().is_terminal();
    if interactive {
        if json {
            return Err(Failure::usage("--json prints one reply").hint("give --message, or the message on stdin"));
        }
        return conversation.converse().await;
    }
    let message = match arguments.message {
        Some(message) => message,
        None => read_message(io::stdin().lock())?,
    };
    conversation.once(message, json).await
}

fn read_message(input: impl Read) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    input
        .take(MAX_MESSAGE_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::failed(format!("stdin cannot be read: {error}")))?;
    if bytes.len() > MAX_MESSAGE_BYTES {
        return Err(Failure::usage(format!("the message on stdin has more than {MAX_MESSAGE_BYTES} bytes")));
    }
    let text = String::from_utf8(bytes).map_err(|_| Failure::usage("the message on stdin is not UTF-8 text"))?;
    match text.trim_end() {
        "" => Err(Failure::usage("the message on stdin is empty").hint("give one with --message")),
        text => Ok(text.to_owned()),
    }
}

struct Conversation {
    client: Client,
    patience: Duration,
    request: ChatRequest,
    place: usize,
    /// The gateway has answered before.
    known: bool,
    interrupts: Signal,
}

impl Conversation {
    async fn once(&mut self, message: String, json: bool) -> Result<Exit, Failure> {
        let streams = !json && io::stdout().is_terminal();
        let (response, _) = self.turn(message, streams).await?;
        if json {
            output::print_json(&response)?;
        } else if !streams {
            output::print(&format!("{}\n", response.reply.text.trim_end()))?;
        }
        Ok(Exit::Ok)
    }

    async fn converse(&mut self) -> Result<Exit, Failure> {
        // Fails now, and not after the first message was typed.
        let health = self.client.health(Asked::Ready).await?;
        self.known = true;
        let paint = Paint::of_stdout();
        let who = health.detail.map_or_else(|| "the gateway".to_owned(), |detail| detail.instance_id);
        let greeting = format!("{who} is listening. Ctrl-C stops an answer, Ctrl-D ends.");
        output::print(&format!("{}\n\n", paint.dim(&printable(&greeting))))?;

        let mut lines = lines_of_stdin();
        loop {
            output::print(&paint.bold("you> "))?;
            let message = loop {
                tokio::select! {
                    line = lines.recv() => match line {
                        Some(Ok(line)) => break line,
                        Some(Err(error)) => return Err(Failure::failed(format!("stdin cannot be read: {error}"))),
                        None => {
                            output::print("\n")?;
                            return Ok(Exit::Ok);
                        }
                    },
                    // The terminal has dropped the half-typed line.
                    _ = self.interrupts.recv() => {
                        output::print(&format!("\n{}\n{}", paint.dim("Ctrl-D ends the conversation."), paint.bold("you> ")))?;
                    }
                }
            };
            if message.trim().is_empty() {
                continue;
            }
            let started = Instant::now();
            match self.turn(message, true).await {
                Ok((response, seen_restart)) => {
                    let mut footer = format!("{} \u{b7} {}", response.instance_id, response.model);
                    footer.push_str(&format!(" \u{b7} {:.1} s", started.elapsed().as_secs_f32()));
                    if seen_restart {
                        footer.push_str(" \u{b7} moved to another instance");
                    }
                    output::print(&format!("{}\n\n", paint.dim(&printable(&footer))))?;
                }
                Err(failure) if failure.exit() == Exit::Interrupted => {
                    output::print(&format!("\n{}\n\n", paint.dim("cancelled")))?
                }
                Err(failure) if failure.silent => return Err(failure),
                // One failed turn does not end a conversation.
                Err(failure) => note(&format!("\n{}\n", failure.text())),
            }
        }
    }

    /// One turn; on a terminal the text appears as it comes. Also says whether the answer began again.
    async fn turn(&mut self, message: String, streams: bool) -> Result<(ChatResponse, bool), Failure> {
        self.request.message = message;
        let mut screen =
            Screen { paint: Paint::of_stdout(), streams, text: String::new(), restarted: false, error: None };
        let mut cancelled = false;
        let mut turn = Turn::new(&self.client, &self.request, self.patience, &mut self.place, self.known);
        let interrupts = &mut self.interrupts;
        let result = turn
            .run(
                async || {
                    interrupts.recv().await;
                    cancelled = true;
                },
                |seen| screen.show(seen),
            )
            .await;
        self.known |= turn.accepted();
        if let Some(error) = screen.error.take() {
            return Err(error);
        }
        match result {
            Ok(response) => {
                screen.finish(&response.reply.text)?;
                Ok((response, screen.restarted))
            }
            Err(_) if cancelled => Err(Failure::new(Exit::Interrupted, "cancelled")),
            Err(failure) => Err(failure),
        }
    }
}

/// Lines from a thread of their own: a read of the terminal cannot be interrupted, and must not hold anything up.
fn lines_of_stdin() -> mpsc::Receiver<io::Result<String>> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut message = String::new();
        for line in io::stdin().lock().lines() {
            let next = match line {
                Ok(line) => match line.strip_suffix('\\') {
                    Some(start) if message.len() < MAX_MESSAGE_BYTES => {
                        message.push_str(start);
                        message.push('\n');
                        continue;
                    }
                    _ => Ok(std::mem::take(&mut message) + &line),
                },
                Err(error) => Err(error),
            };
            if sender.blocking_send(next).is_err() {
                return;
            }
        }
    });
    receiver
}

/// What one answer looks like on the terminal.
struct Screen {
    paint: Paint,
    streams: bool,
    /// Streamed and not yet void.
    text: String,
    restarted: bool,
    error: Option<Failure>,
}

impl Screen {
    fn show(&mut self, seen: Seen) {
        let said = match seen {
            Seen::Accepted { .. } => return,
            Seen::Delta(text) => {
                if self.streams {
                    self.print(&printable(&text));
                }
                self.text.push_str(&text);
                return;
            }
            Seen::Tool(name) => format!("using {name}"),
            Seen::Restart(attempt) => {
                self.text.clear();
                self.restarted = true;
                format!("the instance is gone; another one begins the answer again (attempt {attempt})")
            }
            Seen::Reconnecting(why) => format!("{why}; trying again"),
        };
        let said = printable(&said).replace('\n', " ");
        if self.streams {
            self.print(&format!("\n{}\n", self.paint.dim(&format!("[{said}]"))));
        } else {
            note(&said);
        }
    }

    /// Shows what the stream did not: the committed text is the answer.
    fn finish(&mut self, committed: &str) -> Result<(), Failure> {
        if !self.streams {
            return Ok(());
        }
        let missing = match committed.strip_prefix(self.text.as_str()) {
            Some(rest) => format!("{}\n", printable(rest)),
            None => format!("\n{}\n{}\n", self.paint.dim("[the reply as it was committed]"), printable(committed)),
        };
        output::print(&missing)
    }

    fn print(&mut self, text: &str) {
        if self.error.is_none() {
            self.error = output::print(text).err();
        }
    }
}

/// Colours, where the terminal wants them.
#[derive(Debug, Clone, Copy)]
struct Paint(bool);

impl Paint {
    fn of_stdout() -> Self {
        Self(colours(&io::stdout()))
    }

    fn dim(self, text: &str) -> String {
        self.wrap("2", text)
    }

    fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }

    fn wrap(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piped_message_is_bounded_text() {
        assert_eq!(read_message("two\nlines\n".as_bytes()).unwrap(), "two\nlines");
        for (input, expected) in [
            (b"\n".to_vec(), "error: the message on stdin is empty; give one with --message"),
            (vec![0xff], "error: the message on stdin is not UTF-8 text"),
            (vec![b'x'; MAX_MESSAGE_BYTES + 1], "error: the message on stdin has more than 1048576 bytes"),
        ] {
            let failure = read_message(input.as_slice()).unwrap_err();
            assert_eq!((failure.text().as_str(), failure.exit()), (expected, Exit::Usage));
        }
    }

    #[test]
    fn a_restart_voids_what_was_streamed() {
        let mut screen =
            Screen { paint: Paint(false), streams: false, text: String::new(), restarted: false, error: None };
        screen.show(Seen::Delta("half an ans".into()));
        screen.show(Seen::Restart(2));
        screen.show(Seen::Delta("whole".into()));
        assert_eq!((screen.text.as_str(), screen.restarted), ("whole", true));
    }
}
