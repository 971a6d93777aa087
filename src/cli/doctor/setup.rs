//! The configuration, the files that it names, and whether the instance answers.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use openclaw_config::Config;
use openclaw_config::storage::Backend;
use openclaw_proto::http;
use openclaw_proto::ids::InstanceId;

use super::{Finding, Patient};
use crate::cli::exit::{Exit, Failure};
use crate::cli::settings;

/// Loads the configuration as `openclaw gateway` would.
pub(super) fn load(
    file: Option<PathBuf>,
    instance: Option<&InstanceId>,
    data_dir: Option<&PathBuf>,
) -> (Vec<Finding>, Option<Config>) {
    const CHECK: &str = "configuration";
    let overrides = settings::overrides([
        ("--instance-id", "cluster.instanceId", instance.map(ToString::to_string)),
        ("--data-dir", "storage.dataDir", data_dir.map(|dir| dir.display().to_string())),
    ]);
    // Strictly first: it is what the gateway does. What only upstream knows is no reason to look no further.
    match settings::load(file.clone(), overrides.clone(), false) {
        Ok(loaded) => {
            let mut findings: Vec<Finding> = loaded
                .warnings
                .iter()
                .map(|warning| Finding::warning(CHECK, warning.to_string(), "see `openclaw config check`"))
                .collect();
            findings.push(Finding::ok(CHECK, "it loads"));
            findings.extend(judge_settings(&loaded.config));
            (findings, Some(loaded.config))
        }
        Err(failure) => {
            let what = [vec![failure.message], failure.details].concat().join("; ");
            let lenient = settings::load(file, overrides, true);
            let advice = match &lenient {
                Ok(_) => "start the gateway with --lenient-config, or take these keys out",
                Err(_) => "the gateway does not start with it; `openclaw config schema` says what may stand there",
            };
            (vec![Finding::problem(CHECK, what, advice)], lenient.ok().map(|loaded| loaded.config))
        }
    }
}

fn judge_settings(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    if config.storage.backend != Backend::Raft {
        findings.push(Finding::problem(
            "storage.backend",
            "this release stores sessions in its own replicated storage alone",
            "use \"raft\"",
        ));
    }
    match config.cluster.bootstrap.len() {
        2 => findings.push(Finding::warning(
            "cluster.bootstrap",
            "two voters tolerate no failure: when either is down nothing can be committed",
            "list three instances",
        )),
        count if count > 0 && count.is_multiple_of(2) => findings.push(Finding::warning(
            "cluster.bootstrap",
            format!("{count} voters tolerate no more failures than {}", count - 1),
            "use an odd number of instances",
        )),
        _ => {}
    }
    findings
}

/// Whether the instance runs on this machine, whatever it answers: it does if its admin socket took the connection, which that
/// of a frozen process does as well. Who refuses on its port may be anybody.
pub(super) fn runs(accepted: bool, asked: &Result<http::Cluster, Failure>) -> bool {
    accepted || asked.is_ok()
}

/// What came of asking the instance on this machine.
pub(super) fn answer(
    instance: &InstanceId,
    running: bool,
    asked: Result<http::Cluster, Failure>,
) -> (Finding, Option<http::Cluster>) {
    const CHECK: &str = "instance";
    match asked {
        Ok(cluster) if cluster.instance_id == instance.as_str() => {
            (Finding::ok(CHECK, format!("{instance} answers, in cluster {}", cluster.cluster_id)), Some(cluster))
        }
        Ok(cluster) => {
            let finding = Finding::warning(
                CHECK,
                format!("{} answers, where the configuration says {instance}", cluster.instance_id),
                "name the instance that is meant with --instance-id",
            );
            (finding, Some(cluster))
        }
        Err(failure) if failure.exit() == Exit::Unreachable && running => {
            let finding = Finding::problem(
                CHECK,
                format!("{instance} runs: it accepts connections and does not answer: {}", failure.message),
                "look at its log, and whether its process is stopped or its disk hangs; if it stays so, restart it",
            );
            (finding, None)
        }
        Err(failure) if failure.exit() == Exit::Unreachable => {
            (Finding::skipped(CHECK, format!("{instance} does not run here: {}", failure.message)), None)
        }
        Err(failure) => {
            let advice = failure.hint.unwrap_or_else(|| "its log says more".to_owned());
            (Finding::problem(CHECK, failure.message, advice), None)
        }
    }
}

/// A file that holds a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SecretFile {
    what: &'static str,
    path: PathBuf,
    /// Permission bits; none: it cannot be looked at, for this reason.
    mode: Result<u32, String>,
}

pub(super) fn measure_files(patient: &Patient) -> Vec<SecretFile> {
    let look = |what, path: PathBuf| {
        let mode = std::fs::metadata(&path).map(|found| found.mode() & 0o7777).map_err(|error| error.to_string());
        SecretFile { what, path, mode }
    };
    let mut files = Vec::new();
    if let Some(tls) = &patient.config.cluster.peer.tls {
        files.push(look("cluster.peer.tls.key", tls.key.clone()));
    }
    let [(config, given), (token, token_file)] = patient.files.clone();
    let variable = || std::env::var_os("OPENCLAW_CONFIG_PATH").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".openclaw").join("openclaw.json"));
    if let Some(path) = given.or_else(variable).or_else(home).filter(|path| may_hold_a_secret(path)) {
        files.push(look(config, path));
    }
    files.extend(token_file.map(|path| look(token, path)));
    files
}

/// Whether a key that is called so has a value of its own, and not a variable's.
fn may_hold_a_secret(config: &Path) -> bool {
    const CALLED: [&str; 4] = ["token", "secret", "apikey", "password"];
    let text = std::fs::read_to_string(config).unwrap_or_default().to_lowercase();
    let parts: Vec<&str> = text.split(':').collect();
    parts.windows(2).any(|pair| {
        let (key, value) = (pair[0].trim_end().trim_end_matches(['"', '\'']), pair[1].trim_start());
        let value = value.trim_start_matches(['"', '\'']);
        CALLED.iter().any(|word| key.ends_with(word)) && !value.starts_with("${") && !value.starts_with("null")
    })
}

pub(super) fn judge_files(files: &[SecretFile]) -> Vec<Finding> {
    const CHECK: &str = "secret files";
    if files.is_empty() {
        return vec![Finding::ok(CHECK, "no file holds one: they are in the environment, or there is none")];
    }
    files
        .iter()
        .map(|SecretFile { what, path, mode }| {
            let path = path.display();
            match mode {
                Err(error) => Finding::problem(
                    CHECK,
                    format!("{what}: {path} cannot be looked at: {error}"),
                    "make it readable for the user that runs the gateway",
                ),
                Ok(mode) if mode & 0o077 != 0 => Finding::warning(
                    CHECK,
                    format!("{what}: {path} has mode {mode:04o}: others than its owner may read it"),
                    format!("chmod 600 {path}"),
                ),
                Ok(mode) => Finding::ok(CHECK, format!("{what}: {path} has mode {mode:04o}")),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use openclaw_proto::http::ErrorCode;

    use super::super::Level;
    use super::*;

    #[test]
    fn a_secret_that_others_may_read_is_warned_of() {
        let file = |mode| SecretFile { what: "cluster.peer.tls.key", path: "/k".into(), mode };
        let found = judge_files(&[file(Ok(0o600)), file(Ok(0o640)), file(Err("no such file".into()))]);
        let levels: Vec<_> = found.iter().map(|finding| finding.level).collect();
        assert_eq!(levels, [Level::Ok, Level::Warning, Level::Problem]);
        assert_eq!(found[1].advice.as_deref(), Some("chmod 600 /k"));
    }

    #[test]
    fn a_configuration_holds_a_secret_unless_a_variable_gives_it() {
        let dir = tempfile::tempdir().unwrap();
        let holds = |text: &str| {
            let path = dir.path().join("openclaw.json");
            std::fs::write(&path, text).unwrap();
            may_hold_a_secret(&path)
        };
        assert!(holds("{\n  gateway: { auth: { token: \"abc\" } }\n}"));
        assert!(!holds("{\n  gateway: { auth: { token: \"${TOKEN}\" } }\n}"));
        assert!(holds(r#"{"gateway":{"auth":{"token":"abc"}},"models":{}}"#));
        assert!(!holds(r#"{"models":{"providers":{"echo":{"tokenDelayMs":3}}},"cluster":{"peer":{"secret":null}}}"#));
        assert!(!may_hold_a_secret(&dir.path().join("none")));
    }

    #[test]
    fn no_instance_is_no_problem_and_one_that_is_silent_or_refuses_is() {
        let id = InstanceId::parse("node-1").unwrap();
        let found = |accepted, failure| {
            let asked = Err(failure);
            let running = runs(accepted, &asked);
            (running, answer(&id, running, asked).0.level)
        };
        assert_eq!(found(false, Failure::new(Exit::Unreachable, "refused")), (false, Level::Skipped));
        assert_eq!(found(true, Failure::new(Exit::Unreachable, "no answer within 10 s")), (true, Level::Problem));
        let refused = Failure::answered(ErrorCode::Unauthorized, "the token is wrong", None);
        assert_eq!(found(false, refused), (false, Level::Problem), "by whoever listens there");
    }

    #[test]
    fn an_even_number_of_voters_is_warned_of() {
        let with = |list: &str| {
            let mut config = Config::default();
            config.cluster.bootstrap = list.split_whitespace().map(|member| member.parse().unwrap()).collect();
            judge_settings(&config).len()
        };
        assert_eq!([with(""), with("a=h:1"), with("a=h:1 b=h:2"), with("a=h:1 b=h:2 c=h:3")], [0, 0, 1, 0]);
        assert_eq!(with("a=h:1 b=h:2 c=h:3 d=h:4"), 1);
    }
}
