//! `openclaw cluster`: who is a member, who leads, and changing both; backups of all of it, and new clusters from them.

mod backup;
mod certs;
mod events;
mod restore;

use clap::{Args, Subcommand};
use openclaw_proto::http::{self, MemberRole};
use openclaw_proto::ids::{IdempotencyKey, InstanceId};

use super::client::Client;
use super::exit::{Exit, Failure};
use super::output::{self, Align, Table, facts, or_dash, span};
use super::target::Connection;

/// Show and change the group of instances
#[derive(Debug, Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(super) struct Cluster {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show leader, term, members and warnings: exit code 1 without a leader that a majority follows
    Status {
        #[command(flatten)]
        connection: Connection,
    },
    /// List the members alone
    Members {
        #[command(flatten)]
        connection: Connection,
    },
    /// Show what happened lately: failovers, instances that came and went, channels that moved
    Events {
        #[command(flatten)]
        connection: Connection,
    },
    /// Remove an instance for good; it should be stopped first
    Remove {
        /// Instance to remove
        #[arg(value_name = "INSTANCE")]
        instance: InstanceId,
        #[command(flatten)]
        connection: Connection,
    },
    /// Move leadership to another instance
    TransferLeader {
        /// Instance that should lead [default: the voter that is furthest along]
        #[arg(value_name = "INSTANCE")]
        to: Option<InstanceId>,
        #[command(flatten)]
        connection: Connection,
    },
    // The largest by far: every flag of the others is in it.
    Backup(Box<backup::Backup>),
    Restore(restore::Restore),
    Certs(certs::Certs),
}

const CLUSTER: [&str; 3] = ["api", "v1", "cluster"];

pub(super) async fn run(arguments: Cluster, json: bool) -> Result<Exit, Failure> {
    match arguments.command {
        Command::Status { connection } => {
            let cluster = fetch(&Client::new(&connection)?).await?;
            output::answer(json, &cluster, || render(&cluster))?;
            Ok(if cluster.leader.is_some() { Exit::Ok } else { Exit::Failed })
        }
        Command::Members { connection } => {
            let cluster = fetch(&Client::new(&connection)?).await?;
            output::answer(json, &cluster.members, || members(&cluster).render())?;
            Ok(Exit::Ok)
        }
        Command::Events { connection } => {
            let overview = events::fetch(&Client::new(&connection)?).await?;
            output::answer(json, &overview.events, || events::render(&overview))?;
            Ok(Exit::Ok)
        }
        Command::Remove { instance, connection } => {
            let body = http::RemoveRequest { instance_id: instance.to_string() };
            let cluster = change(&Client::new(&connection)?, "remove", &body).await?;
            report(&cluster, json, &format!("{instance} is no longer a member"))
        }
        Command::TransferLeader { to, connection } => {
            let body = http::TransferLeaderRequest { to: to.map(String::from) };
            let cluster = change(&Client::new(&connection)?, "transfer-leader", &body).await?;
            let leader = or_dash(cluster.leader.as_deref());
            report(&cluster, json, &format!("{leader} leads"))
        }
        Command::Backup(arguments) => backup::run(*arguments, json).await,
        Command::Restore(arguments) => restore::run(arguments, json).await,
        Command::Certs(arguments) => certs::run(&arguments, json),
    }
}

pub(super) async fn fetch(client: &Client) -> Result<http::Cluster, Failure> {
    client.get(&CLUSTER, &[]).await
}

async fn change(client: &Client, what: &str, body: &impl serde::Serialize) -> Result<http::Cluster, Failure> {
    let [api, v1, cluster] = CLUSTER;
    client.post(&[api, v1, cluster, what], IdempotencyKey::random().as_str(), body).await
}

fn report(cluster: &http::Cluster, json: bool, said: &str) -> Result<Exit, Failure> {
    output::answer(json, cluster, || format!("{}\n{}", output::printable(said), warnings(cluster)))?;
    Ok(Exit::Ok)
}

/// Leader, members and what an operator should know.
pub(super) fn render(cluster: &http::Cluster) -> String {
    let mut text = facts([
        ("cluster", cluster.cluster_id.clone()),
        ("seen by", cluster.instance_id.clone()),
        ("leader", cluster.leader.clone().unwrap_or_else(|| "none".to_owned())),
        ("term", cluster.term.to_string()),
        ("committed", format!("log index {}", cluster.commit_index)),
    ]);
    text.push('\n');
    text.push_str(&members(cluster).render());
    text.push_str(&warnings(cluster));
    text
}

/// One line per member.
pub(super) fn members(cluster: &http::Cluster) -> Table {
    let mut table = Table::new([
        ("INSTANCE", Align::Left),
        ("ROLE", Align::Left),
        ("STATE", Align::Left),
        ("APPLIED", Align::Right),
        ("LAG", Align::Right),
        ("SEEN", Align::Right),
        ("VERSION", Align::Left),
        ("HTTP", Align::Left),
        ("PEER", Align::Left),
    ]);
    for member in &cluster.members {
        let lag = member.applied_index.map(|applied| cluster.commit_index.saturating_sub(applied));
        table.row([
            member.instance_id.clone(),
            role(member.role).to_owned(),
            state(member).to_owned(),
            or_dash(member.applied_index),
            or_dash(lag),
            member.last_seen_ms.map_or_else(|| "-".to_owned(), |ms| format!("{} ago", span(ms))),
            or_dash(member.version.as_deref()),
            member.http_addr.clone(),
            member.peer_addr.clone(),
        ]);
    }
    table
}

fn warnings(cluster: &http::Cluster) -> String {
    cluster.warnings.iter().map(|warning| format!("warning: {}\n", output::printable(warning))).collect()
}

fn role(role: MemberRole) -> &'static str {
    match role {
        MemberRole::Leader => "leader",
        MemberRole::Follower => "follower",
        MemberRole::Learner => "learner",
    }
}

fn state(member: &http::Member) -> &'static str {
    match (member.live, member.draining) {
        (false, _) => "gone",
        (true, true) => "draining",
        (true, false) => "live",
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn example() -> http::Cluster {
        let member = |id: &str, role, applied, live: bool, seen| http::Member {
            instance_id: id.into(),
            role,
            http_addr: "127.0.0.1:3001".into(),
            peer_addr: "127.0.0.1:3101".into(),
            applied_index: applied,
            version: live.then(|| "0.1.0".into()),
            epoch: live.then_some(7),
            live,
            draining: false,
            last_seen_ms: seen,
        };
        http::Cluster {
            cluster_id: "demo".into(),
            instance_id: "node-2".into(),
            leader: Some("node-1".into()),
            term: 3,
            commit_index: 1204,
            format: 1,
            members: vec![
                member("node-1", MemberRole::Leader, Some(1204), true, Some(120)),
                member("node-2", MemberRole::Follower, Some(1200), true, Some(340)),
                member("node-3", MemberRole::Follower, None, false, Some(95_000)),
            ],
            warnings: vec!["node-3 is gone: one more loss stops writes".into()],
        }
    }

    #[test]
    fn the_cluster_on_one_screen() {
        insta::assert_snapshot!(render(&example()), @r"
        cluster    demo
        seen by    node-2
        leader     node-1
        term       3
        committed  log index 1204

        INSTANCE  ROLE      STATE  APPLIED  LAG        SEEN  VERSION  HTTP            PEER
        node-1    leader    live      1204    0  120 ms ago  0.1.0    127.0.0.1:3001  127.0.0.1:3101
        node-2    follower  live      1200    4  340 ms ago  0.1.0    127.0.0.1:3001  127.0.0.1:3101
        node-3    follower  gone         -    -    95 s ago  -        127.0.0.1:3001  127.0.0.1:3101
        warning: node-3 is gone: one more loss stops writes
        ");
    }
}
