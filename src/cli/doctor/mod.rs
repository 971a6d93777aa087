//! `openclaw doctor`: looks at everything that an instance needs, beside a running one or before its first start, and says
//! what to do.
//!
//! A file per topic, in two halves: `measure` looks and decides nothing, `judge` decides and looks at nothing. The topics run
//! side by side, each within a time limit; one that hangs is a finding of its own. Nothing that is looked at changes, but for a small
//! file in the data directory, which is removed again.

mod balancer;
mod channels;
mod clock;
mod disk;
mod group;
mod machine;
mod peers;
mod setup;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use openclaw_config::Config;
use openclaw_proto::http;
use openclaw_proto::ids::InstanceId;
use serde::Serialize;

use super::client::Client;
use super::exit::{Exit, Failure};
use super::output;
use super::target::{Connection, Place, parse_place, resolve};

/// Check configuration, disk, clock, peers, certificates, quorum, channels and balancer, and say what to do
///
/// Runs beside a running instance, or before its first start with the settings that it will get. Exit code 0 when all is right,
/// 7 with warnings, 1 with problems.
#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// Address of the balancer in front of the instances, which is then looked at as well
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// The instance on this machine, by its id [OPENCLAW_INSTANCE_ID]
    #[arg(long, value_name = "ID")]
    instance_id: Option<InstanceId>,
    /// Data directory of the gateway [OPENCLAW_DATA_DIR]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Configuration file [OPENCLAW_CONFIG_PATH]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// File holding the bearer token [OPENCLAW_GATEWAY_TOKEN, then the configuration]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Longest time for each topic, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=300))]
    timeout: u64,
}

/// How it is. In the order of how bad that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// It could not be looked at, and need not be.
    Skipped,
    Ok,
    /// It works, and may not go on to.
    Warning,
    /// Something does not work.
    Problem,
}

impl Level {
    fn word(self) -> &'static str {
        match self {
            Self::Skipped => "skipped",
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    check: &'static str,
    level: Level,
    /// What was seen, on one line.
    saw: String,
    /// What to do about it; absent where nothing is to be done.
    #[serde(rename = "do", skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, saw: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, saw: saw.into(), advice: None }
    }

    fn skipped(check: &'static str, why: impl Into<String>) -> Self {
        Self { check, level: Level::Skipped, saw: why.into(), advice: None }
    }

    fn warning(check: &'static str, saw: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, level: Level::Warning, saw: saw.into(), advice: Some(advice.into()) }
    }

    fn problem(check: &'static str, saw: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, level: Level::Problem, saw: saw.into(), advice: Some(advice.into()) }
    }
}

/// Everything that was found.
#[derive(Debug, Serialize)]
struct Report {
    /// Of the worst.
    level: Level,
    findings: Vec<Finding>,
}

/// What all topics are told.
struct Patient {
    config: Config,
    instance: InstanceId,
    /// The instance's own directory.
    home: PathBuf,
    /// The instance on this machine runs, though it may not answer.
    running: bool,
    /// What it says of its cluster; none: it does not answer.
    cluster: Option<http::Cluster>,
    client: Option<Client>,
    token: Option<String>,
    /// Files that the command line names: the configuration, and the token's.
    files: [(&'static str, Option<PathBuf>); 2],
    timeout: Duration,
}

pub(super) async fn run(arguments: Doctor, json: bool) -> Result<Exit, Failure> {
    let balancer = arguments.url.as_deref().map(parse_place).transpose();
    let balancer = balancer.map_err(|error| Failure::usage(format!("--url: {error}")))?;
    let (mut findings, patient) = examine(&arguments).await;
    if let Some(patient) = patient {
        findings.extend(treat(&patient, balancer).await);
    }
    let level = findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Skipped);
    let report = Report { level, findings };
    output::answer(json, &report, || render(&report))?;
    Ok(match level {
        Level::Skipped | Level::Ok => Exit::Ok,
        Level::Warning => Exit::Warned,
        Level::Problem => Exit::Failed,
    })
}

/// What the other topics build on: the configuration, and whether the instance answers.
async fn examine(arguments: &Doctor) -> (Vec<Finding>, Option<Patient>) {
    let (mut findings, loaded) =
        setup::load(arguments.config.clone(), arguments.instance_id.as_ref(), arguments.data_dir.as_ref());
    let Some(config) = loaded else { return (findings, None) };
    let timeout = Duration::from_secs(arguments.timeout);
    let instance = config.cluster.instance_id_or_default();
    let connection = Connection {
        url: Vec::new(),
        instance_id: arguments.instance_id.clone(),
        data_dir: arguments.data_dir.clone(),
        config: arguments.config.clone(),
        token_file: arguments.token_file.clone(),
        request_timeout: arguments.timeout,
    };
    let target = match resolve(&connection) {
        Ok(target) => target,
        Err(failure) => {
            findings.push(Finding::problem("instance", failure.message, failure.hint.unwrap_or_default()));
            return (findings, None);
        }
    };
    let token = target.token.clone();
    // A socket is a target only if it took a connection.
    let accepted = target.places.iter().any(|place| matches!(place, Place::Socket(_)));
    let client = Client::to(target, timeout).ok();
    let asked = match &client {
        Some(client) => super::cluster::fetch(client).await,
        None => Err(Failure::failed("no HTTP client can be made here")),
    };
    let running = setup::runs(accepted, &asked);
    let (finding, cluster) = setup::answer(&instance, running, asked);
    findings.push(finding);
    let files = [("--config", arguments.config.clone()), ("--token-file", arguments.token_file.clone())];
    let home = config.storage.data_dir.join(instance.as_str());
    (findings, Some(Patient { instance, home, running, cluster, client, token, files, timeout, config }))
}

async fn treat(patient: &Patient, balancer: Option<Place>) -> Vec<Finding> {
    let within = |name: &'static str, work| within(name, patient.timeout, work);
    let (files, disk, machine, clock, peers, group, channels, balancer) = tokio::join!(
        within("files", boxed(async { setup::judge_files(&setup::measure_files(patient)) })),
        within("disk", boxed(async { disk::judge(&disk::measure(patient).await) })),
        within("machine", boxed(async { machine::judge(&machine::measure(patient)) })),
        within("clock", boxed(async { clock::judge(&clock::measure(patient).await) })),
        within("peers", boxed(async { peers::judge(&peers::measure(patient).await) })),
        within("cluster", boxed(async { group::judge(patient.cluster.as_ref(), group::measure(patient).await) })),
        within("channels", boxed(async { channels::judge(&channels::measure(patient).await) })),
        within(
            "balancer",
            boxed(async {
                match balancer {
                    Some(place) => balancer::judge(&balancer::measure(patient, place).await),
                    None => vec![Finding::skipped("balancer", "no address was given (--url)")],
                }
            })
        ),
    );
    [files, disk, machine, clock, peers, group, channels, balancer].concat()
}

type Work<'a> = futures::future::LocalBoxFuture<'a, Vec<Finding>>;

fn boxed<'a>(work: impl Future<Output = Vec<Finding>> + 'a) -> Work<'a> {
    Box::pin(work)
}

/// A topic that takes too long is a finding.
async fn within(name: &'static str, limit: Duration, work: Work<'_>) -> Vec<Finding> {
    // The topics bound what they wait for by the same limit; this one is for what they did not think of.
    match tokio::time::timeout(limit + Duration::from_secs(1), work).await {
        Ok(findings) => findings,
        Err(_) => vec![Finding::problem(
            name,
            format!("it was not looked at to its end within {} s", limit.as_secs()),
            "something hangs: look at it by hand, or give it longer with --timeout",
        )],
    }
}

fn render(report: &Report) -> String {
    let width = report.findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
    let mut text = String::new();
    for finding in &report.findings {
        let (word, check) = (finding.level.word(), finding.check);
        let line = format!("{word:<8} {check:<width$}  {}", finding.saw).replace('\n', " ");
        text.push_str(&output::printable(&line));
        text.push('\n');
        if let Some(advice) = &finding.advice {
            text.push_str(&output::printable(&format!("{:9}{:width$}  -> {advice}", "", "").replace('\n', " ")));
            text.push('\n');
        }
    }
    let count = |level| report.findings.iter().filter(|finding| finding.level == level).count();
    let (problems, warnings) = (count(Level::Problem), count(Level::Warning));
    let plural = |n: usize, word: &str| format!("{n} {word}{}", if n == 1 { "" } else { "s" });
    text.push_str(&match (problems, warnings) {
        (0, 0) => "\nall is right\n".to_owned(),
        _ => format!("\n{}, {}\n", plural(problems, "problem"), plural(warnings, "warning")),
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_is_a_line_and_what_to_do_another() {
        let findings = vec![
            Finding::ok("disk", "12 GiB free"),
            Finding::warning("clock", "3 s apart", "run a time service"),
            Finding::skipped("balancer", "no address"),
        ];
        let report = Report { level: Level::Warning, findings };
        insta::assert_snapshot!(render(&report), @r"
        ok       disk      12 GiB free
        warning  clock     3 s apart
                           -> run a time service
        skipped  balancer  no address

        0 problems, 1 warning
        ");
        assert!(Level::Problem > Level::Warning && Level::Warning > Level::Ok && Level::Ok > Level::Skipped);
    }

    #[tokio::test(start_paused = true)]
    async fn what_hangs_is_a_finding() {
        let found = within("disk", Duration::from_secs(3), boxed(std::future::pending())).await;
        assert_eq!(found[0].level, Level::Problem);
        assert_eq!(found[0].saw, "it was not looked at to its end within 3 s");
    }
}
