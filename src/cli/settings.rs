//! The configuration as commands see it: loaded once, with their flags on top.
//!
//! `gateway` needs all of it; the other commands need to know where the instance on this machine is, and no more.

use std::path::PathBuf;

use openclaw_config::{Errors, Loaded, Override, Sources};
use openclaw_proto::ids::InstanceId;

use super::exit::{Exit, Failure};
use super::target::Connection;

/// How to find and enter the instance on this machine.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) data_dir: PathBuf,
    pub(crate) instance_id: Option<InstanceId>,
    pub(crate) port: u16,
    pub(crate) token: Option<String>,
}

/// Flags that were given, as settings.
pub(crate) fn overrides(
    flags: impl IntoIterator<Item = (&'static str, &'static str, Option<String>)>,
) -> Vec<Override> {
    flags.into_iter().filter_map(|(flag, key, value)| Some(Override { flag, key, value: value? })).collect()
}

/// Reads file, environment and flags.
///
/// # Errors
/// Every problem, a line each, with [`Exit::Config`].
pub(crate) fn load(file: Option<PathBuf>, overrides: Vec<Override>, lenient: bool) -> Result<Loaded, Failure> {
    let env = |name: &str| std::env::var(name).ok();
    openclaw_config::load(Sources { file, env: &env, overrides, lenient }).map_err(|errors| refusal(&errors))
}

fn refusal(errors: &Errors) -> Failure {
    match errors.0.as_slice() {
        [one] => Failure::new(Exit::Config, one.to_string()),
        several => Failure::new(Exit::Config, format!("{} problems in the configuration", several.len()))
            .details(several.iter().map(ToString::to_string).collect()),
    }
}

/// Reads what tells where the instance on this machine is.
///
/// # Errors
/// A configuration that cannot be read, unless `--url` makes it unnecessary.
pub(crate) fn local(connection: &Connection) -> Result<Settings, Failure> {
    let overrides = overrides([
        ("--instance-id", "cluster.instanceId", connection.instance_id.as_ref().map(ToString::to_string)),
        ("--data-dir", "storage.dataDir", connection.data_dir.as_ref().map(|dir| dir.display().to_string())),
    ]);
    // Upstream's own keys are the gateway's business; here they would only be in the way.
    let config = match load(connection.config.clone(), overrides, true) {
        Ok(loaded) => loaded.config,
        // The address is given, and a token may be in the environment: do not fail over what is not needed.
        Err(_) if !connection.url.is_empty() && connection.config.is_none() => {
            let token = std::env::var("OPENCLAW_GATEWAY_TOKEN").ok().filter(|token| !token.is_empty());
            return Ok(Settings { data_dir: PathBuf::new(), instance_id: None, port: 0, token });
        }
        Err(failure) => return Err(failure.hint("name the gateway with --url to do without the configuration")),
    };
    Ok(Settings {
        data_dir: config.storage.data_dir,
        instance_id: config.cluster.instance_id,
        port: config.gateway.port,
        token: config.gateway.auth.token.map(|token| token.expose().to_owned()),
    })
}
