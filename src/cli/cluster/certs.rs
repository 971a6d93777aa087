//! `openclaw cluster certs`: the cluster's own authority, and a certificate for each instance.
//!
//! Files only: no instance is asked. The directory with `ca.key` stays with the operator; an instance gets `ca.crt` and its own
//! two files.

use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use openclaw_proto::ids::{ClusterId, InstanceId};
use openclaw_raft::certs::{Authority, CertError, Validity};
use serde::Serialize;

use crate::cli::exit::{Exit, Failure};
use crate::cli::output;

/// Make certificates for mutual TLS between instances
///
/// The first call makes the cluster's authority; later calls with the same --out add instances to it. Copy ca.crt and
/// an instance's own .crt and .key to that instance (cluster.peer.tls); keep ca.key away from all of them.
#[derive(Debug, Args)]
pub(super) struct Certs {
    /// Instances to make certificates for
    #[arg(required = true, value_name = "INSTANCE")]
    instances: Vec<InstanceId>,
    /// Directory of the files; made if missing
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Name of the cluster; needed for a new authority, checked against an existing one
    #[arg(long, value_name = "NAME")]
    cluster_id: Option<ClusterId>,
    /// Lifetime of the instances' certificates, in days
    #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = clap::value_parser!(u64).range(1..=3650))]
    days: u64,
    /// Lifetime of a new authority, in days
    #[arg(long, value_name = "DAYS", default_value_t = 3650, value_parser = clap::value_parser!(u64).range(1..=36_500))]
    ca_days: u64,
}

/// What was written.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    cluster_id: Option<String>,
    authority: PathBuf,
    new_authority: bool,
    instances: Vec<Issued>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Issued {
    instance_id: InstanceId,
    cert: PathBuf,
    key: PathBuf,
}

/// PEM files of this kind have a few hundred bytes.
const MAX_PEM_BYTES: u64 = 64 * 1024;

pub(super) fn run(arguments: &Certs, json: bool) -> Result<Exit, Failure> {
    let report = issue(arguments)?;
    output::answer(json, &report, || render(&report))?;
    Ok(Exit::Ok)
}

fn issue(arguments: &Certs) -> Result<Report, Failure> {
    let out = &arguments.out;
    // Before anything is written, so that a list with one old name in it changes nothing.
    for instance in &arguments.instances {
        let path = out.join(format!("{instance}.crt"));
        if path.symlink_metadata().is_ok() {
            return Err(failure(&CertError::Exists { path }));
        }
    }
    let existing = (read_pem(&out.join("ca.crt"))?, read_pem(&out.join("ca.key"))?);
    let (authority, new_authority) = match existing {
        (Some(cert), Some(key)) => {
            let authority = Authority::load(&cert, &key).map_err(|error| failure(&error))?;
            if let (Some(asked), Some(actual)) = (&arguments.cluster_id, authority.cluster_id())
                && asked != actual
            {
                return Err(Failure::new(
                    Exit::Refused,
                    format!("the authority in {} is cluster {actual}'s, not {asked}'s", out.display()),
                )
                .hint("use another --out for another cluster"));
            }
            (authority, false)
        }
        (None, None) => {
            let Some(cluster_id) = &arguments.cluster_id else {
                return Err(Failure::usage(format!("{} has no authority yet", out.display()))
                    .hint("name the cluster with --cluster-id to make one"));
            };
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(out)
                .map_err(|error| Failure::failed(format!("{} cannot be made: {error}", out.display())))?;
            let authority = Authority::create(cluster_id, days(arguments.ca_days)).map_err(|error| failure(&error))?;
            authority.write_files(out).map_err(|error| failure(&error))?;
            (authority, true)
        }
        (Some(_), None) | (None, Some(_)) => {
            return Err(Failure::failed(format!("{} holds only one of ca.crt and ca.key", out.display()))
                .hint("bring the other back, or use another --out"));
        }
    };
    let instances = arguments
        .instances
        .iter()
        .map(|instance| {
            let issued = authority.issue(instance, &[], days(arguments.days)).map_err(|error| failure(&error))?;
            let files = issued.write_files(out).map_err(|error| failure(&error))?;
            Ok(Issued { instance_id: instance.clone(), cert: files.cert, key: files.key })
        })
        .collect::<Result<_, Failure>>()?;
    let cluster_id = authority.cluster_id().map(ToString::to_string);
    Ok(Report { cluster_id, authority: out.join("ca.crt"), new_authority, instances })
}

fn days(days: u64) -> Validity {
    Validity::starting_now(Duration::from_secs(days * 24 * 60 * 60))
}

fn read_pem(path: &Path) -> Result<Option<String>, Failure> {
    let fail = |error: std::io::Error| Failure::failed(format!("{} cannot be read: {error}", path.display()));
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fail(error)),
    };
    let mut text = String::new();
    file.take(MAX_PEM_BYTES).read_to_string(&mut text).map_err(fail)?;
    Ok(Some(text))
}

fn failure(error: &CertError) -> Failure {
    let failure = Failure::failed(error.to_string());
    match error {
        CertError::Exists { .. } => Failure { exit: Exit::Refused, ..failure }
            .hint("move it away to issue a new one, or leave the instance out"),
        CertError::AuthorityExpired { .. } => failure.hint("make a new authority in another --out"),
        CertError::Validity { .. }
        | CertError::ExtraName { .. }
        | CertError::ExtraNames { .. }
        | CertError::AuthorityCertificate
        | CertError::AuthorityKey(_)
        | CertError::NotAnAuthority
        | CertError::AuthorityName
        | CertError::KeyMismatch
        | CertError::Generate(_)
        | CertError::Write { .. } => failure,
    }
}

fn render(report: &Report) -> String {
    let cluster = output::or_dash(report.cluster_id.as_deref());
    let made = if report.new_authority { "new authority" } else { "authority" };
    let mut text = format!("{made} of cluster {cluster}: {}\n", report.authority.display());
    for issued in &report.instances {
        text.push_str(&format!("{}: {} {}\n", issued.instance_id, issued.cert.display(), issued.key.display()));
    }
    text.push_str("Copy to each instance ca.crt and its own two files, never ca.key; name them in cluster.peer.tls.\n");
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn arguments(out: &Path, cluster: Option<&str>, instances: &[&str]) -> Certs {
        Certs {
            instances: instances.iter().map(|id| InstanceId::parse(*id).unwrap()).collect(),
            out: out.to_owned(),
            cluster_id: cluster.map(|id| ClusterId::parse(id).unwrap()),
            days: 30,
            ca_days: 60,
        }
    }

    #[test]
    fn an_authority_is_made_once_and_instances_are_added_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("certs");
        let failed = |cluster, instances: &[&str]| issue(&arguments(&out, cluster, instances)).unwrap_err();

        assert_eq!(failed(None, &["node-1"]).exit(), Exit::Usage);
        assert!(issue(&arguments(&out, Some("c1"), &["node-1", "node-2"])).unwrap().new_authority);
        assert_eq!(fs::metadata(&out).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(out.join("ca.key")).unwrap().permissions().mode() & 0o777, 0o600);

        let again = failed(Some("c1"), &["node-3", "node-2"]);
        assert_eq!(again.exit(), Exit::Refused);
        assert!(!out.join("node-3.crt").exists(), "nothing is written when one exists");
        assert_eq!(failed(Some("other"), &["node-3"]).exit(), Exit::Refused);

        let added = issue(&arguments(&out, None, &["node-3"])).unwrap();
        assert!(!added.new_authority);
        assert_eq!(added.cluster_id.as_deref(), Some("c1"));

        fs::remove_file(out.join("ca.key")).unwrap();
        assert!(failed(None, &["node-4"]).text().contains("holds only one of ca.crt and ca.key"));
    }
}
