//! `openclaw channels`: which instance runs which bot account, moving one, and what could not be delivered.

use clap::{Args, Subcommand};
use openclaw_proto::http::{
    ChannelList, ChannelStatus, DeadLetterAction, DeadLetterList, DeadLetterRequest, MoveRequest,
};
use openclaw_proto::ids::{IdempotencyKey, InstanceId};

use super::client::Client;
use super::exit::{Exit, Failure};
use super::output::{self, Align, Table, or_dash, span};
use super::target::Connection;

/// Show channels, move them, and decide about what was not delivered
#[derive(Debug, Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(super) struct Channels {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show every bot account, its owner and its outbox: exit code 1 if one has no owner
    Status {
        #[command(flatten)]
        connection: Connection,
    },
    /// Have another instance run a bot account
    Move {
        /// Bot account: telegram:default, or telegram for short
        #[arg(value_name = "ACCOUNT")]
        account: String,
        /// Instance that shall run it
        #[arg(value_name = "INSTANCE")]
        to: InstanceId,
        #[command(flatten)]
        connection: Connection,
    },
    /// List what was not delivered, or send or drop one of it
    DeadLetters {
        /// Bot account: telegram:default, or telegram for short
        #[arg(value_name = "ACCOUNT")]
        account: String,
        /// Send this message once more
        #[arg(long, value_name = "ID", conflicts_with = "drop")]
        resubmit: Option<u64>,
        /// Forget this message
        #[arg(long, value_name = "ID")]
        drop: Option<u64>,
        #[command(flatten)]
        connection: Connection,
    },
}

const CHANNELS: [&str; 3] = ["api", "v1", "channels"];

pub(super) async fn run(arguments: Channels, json: bool) -> Result<Exit, Failure> {
    let [api, v1, channels] = CHANNELS;
    let key = IdempotencyKey::random();
    match arguments.command {
        Command::Status { connection } => {
            let list: ChannelList = Client::new(&connection)?.get(&CHANNELS, &[]).await?;
            output::answer(json, &list, || render(&list, output::now_ms()))?;
            let owned = list.channels.iter().all(|channel| channel.everywhere || channel.owner.is_some());
            Ok(if owned { Exit::Ok } else { Exit::Failed })
        }
        Command::Move { account, to, connection } => {
            let path = [api, v1, channels, &account, "move"];
            let body = MoveRequest { to: to.to_string() };
            let status: ChannelStatus = Client::new(&connection)?.post(&path, key.as_str(), &body).await?;
            output::answer(json, &status, || moved(&status))?;
            Ok(Exit::Ok)
        }
        Command::DeadLetters { account, resubmit, drop, connection } => {
            let client = Client::new(&connection)?;
            let path = [api, v1, channels, &account, "dead-letters"];
            let decided =
                resubmit.map(|id| (id, DeadLetterAction::Resubmit)).or(drop.map(|id| (id, DeadLetterAction::Drop)));
            let list: DeadLetterList = match decided {
                None => client.get(&path, &[]).await?,
                Some((id, action)) => {
                    let (id, [api, v1, channels, account, what]) = (id.to_string(), path);
                    let path = [api, v1, channels, account, what, &id];
                    client.post(&path, key.as_str(), &DeadLetterRequest { action }).await?
                }
            };
            output::answer(json, &list, || dead_letters(&list))?;
            Ok(Exit::Ok)
        }
    }
}

/// One line per account.
fn render(list: &ChannelList, now_ms: u64) -> String {
    let ago = |unix_ms: u64| span(now_ms.saturating_sub(unix_ms));
    if list.channels.is_empty() {
        return "no instance has a channel in its configuration\n".to_owned();
    }
    let mut table = Table::new([
        ("ACCOUNT", Align::Left),
        ("OWNER", Align::Left),
        ("MOVING TO", Align::Left),
        ("SINCE", Align::Right),
        ("CONNECTED", Align::Left),
        ("LAST INBOUND", Align::Right),
        ("WAITING", Align::Right),
        ("OLDEST", Align::Right),
        ("UNKNOWN", Align::Right),
        ("FAILED", Align::Right),
        ("LAST ERROR", Align::Left),
    ]);
    for channel in &list.channels {
        let connected = match channel.connected {
            Some(true) => "yes",
            Some(false) => "no",
            // Its owner does not say.
            None => "-",
        };
        table.row([
            channel.account.clone(),
            if channel.everywhere { "every instance".to_owned() } else { or_dash(channel.owner.as_deref()) },
            or_dash(channel.moving_to.as_deref()),
            channel.since_ms.map_or_else(|| "-".to_owned(), ago),
            connected.to_owned(),
            channel.last_inbound_ms.map_or_else(|| "-".to_owned(), ago),
            channel.outbox.waiting.to_string(),
            channel.outbox.oldest_ms.map_or_else(|| "-".to_owned(), span),
            channel.outbox.unknown.to_string(),
            channel.outbox.failed.to_string(),
            or_dash(channel.last_error.as_deref()),
        ]);
    }
    format!("{}seen by {}\n", table.render(), output::printable(&list.instance_id))
}

fn moved(status: &ChannelStatus) -> String {
    let text = match (&status.owner, &status.moving_to) {
        (_, Some(to)) => format!("{} goes to {to} as soon as its owner has let go\n", status.account),
        (Some(owner), None) => format!("{owner} runs {}\n", status.account),
        (None, None) => format!("nobody runs {}\n", status.account),
    };
    output::printable(&text).into_owned()
}

fn dead_letters(list: &DeadLetterList) -> String {
    if list.dead_letters.is_empty() {
        return "everything was delivered\n".to_owned();
    }
    let mut table = Table::new([
        ("ID", Align::Left),
        ("CHAT", Align::Left),
        ("STATE", Align::Left),
        ("SESSION", Align::Left),
        ("ENTRY", Align::Right),
        ("ERROR", Align::Left),
    ]);
    for letter in &list.dead_letters {
        table.row([
            letter.id.clone(),
            letter.chat.clone(),
            letter.state.clone(),
            or_dash(letter.session_key.as_deref()),
            or_dash(letter.seq),
            letter.error.clone(),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use openclaw_proto::http::OutboxStatus;

    use super::*;

    #[test]
    fn channels_on_one_screen() {
        let list = ChannelList {
            instance_id: "node-1".into(),
            channels: vec![
                ChannelStatus {
                    account: "telegram:default".into(),
                    owner: Some("node-1".into()),
                    since_ms: Some(1_000),
                    connected: Some(true),
                    last_inbound_ms: Some(58_000),
                    outbox: OutboxStatus { waiting: 2, oldest_ms: Some(1500), ..OutboxStatus::default() },
                    ..ChannelStatus::default()
                },
                ChannelStatus {
                    account: "discord:default".into(),
                    owner: Some("node-2".into()),
                    moving_to: Some("node-3".into()),
                    ..ChannelStatus::default()
                },
                ChannelStatus {
                    account: "telegram:ops".into(),
                    last_error: Some("unauthorized\n".into()),
                    ..ChannelStatus::default()
                },
            ],
        };
        insta::assert_snapshot!(render(&list, 60_000), @r"
        ACCOUNT           OWNER   MOVING TO  SINCE  CONNECTED  LAST INBOUND  WAITING  OLDEST  UNKNOWN  FAILED  LAST ERROR
        telegram:default  node-1  -           59 s  yes                 2 s        2     1 s        0       0  -
        discord:default   node-2  node-3         -  -                     -        0       -        0       0  -
        telegram:ops      -       -              -  -                     -        0       -        0       0  unauthorized
        seen by node-1
        ");
    }
}
