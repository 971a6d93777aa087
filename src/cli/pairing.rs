//! `openclaw pairing`: who may write to the bots, beside those in the configuration.

use clap::{Args, Subcommand};
use openclaw_proto::http::{ApproveRequest, Pairing as Person, PairingList, RevokeRequest};
use openclaw_proto::ids::IdempotencyKey;

use super::client::Client;
use super::exit::{Exit, Failure};
use super::output::{self, Align, Table, or_dash};
use super::target::Connection;

/// Let people write to the bots
#[derive(Debug, Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(super) struct Pairing {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List who waits for approval, and who has it
    List {
        #[command(flatten)]
        connection: Connection,
    },
    /// Approve whoever was told this code
    Approve {
        /// Channel, or one account of it: telegram, telegram:default
        #[arg(value_name = "CHANNEL")]
        channel: String,
        /// What the bot told them
        #[arg(value_name = "CODE")]
        code: String,
        #[command(flatten)]
        connection: Connection,
    },
    /// Take an approval back
    Revoke {
        /// Bot account: telegram:default, or telegram for short
        #[arg(value_name = "ACCOUNT")]
        account: String,
        /// Who, by the platform's id
        #[arg(value_name = "ID")]
        sender: String,
        #[command(flatten)]
        connection: Connection,
    },
}

const PAIRINGS: [&str; 3] = ["api", "v1", "pairings"];

pub(super) async fn run(arguments: Pairing, json: bool) -> Result<Exit, Failure> {
    let [api, v1, pairings] = PAIRINGS;
    let key = IdempotencyKey::random();
    match arguments.command {
        Command::List { connection } => {
            let list: PairingList = Client::new(&connection)?.get(&PAIRINGS, &[]).await?;
            output::answer(json, &list, || render(&list))?;
            Ok(Exit::Ok)
        }
        Command::Approve { channel, code, connection } => {
            let body = ApproveRequest { channel, code };
            let path = [api, v1, pairings, "approve"];
            let person: Person = Client::new(&connection)?.post(&path, key.as_str(), &body).await?;
            let text = format!("{} ({}) may write to {}\n", person.sender_name, person.sender_id, person.account);
            output::answer(json, &person, || output::printable(&text).into_owned())?;
            Ok(Exit::Ok)
        }
        Command::Revoke { account, sender, connection } => {
            let body = RevokeRequest { account, sender_id: sender };
            let path = [api, v1, pairings, "revoke"];
            let list: PairingList = Client::new(&connection)?.post(&path, key.as_str(), &body).await?;
            output::answer(json, &list, || render(&list))?;
            Ok(Exit::Ok)
        }
    }
}

fn render(list: &PairingList) -> String {
    if list.pairings.is_empty() {
        return "nobody waits, and nobody was approved\n".to_owned();
    }
    let mut table = Table::new([
        ("ACCOUNT", Align::Left),
        ("ID", Align::Left),
        ("NAME", Align::Left),
        ("STATE", Align::Left),
        ("CODE", Align::Left),
    ]);
    for person in &list.pairings {
        table.row([
            person.account.clone(),
            person.sender_id.clone(),
            person.sender_name.clone(),
            if person.approved { "approved" } else { "waits" }.to_owned(),
            or_dash(person.code.as_deref()),
        ]);
    }
    table.render()
}
