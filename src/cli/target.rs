//! Finds the gateway that a command talks to.
//!
//! In this order: `--url`; the admin socket of the instance that the flags, the environment or the configuration name;
//! the only live admin socket under the data directory; `http://127.0.0.1:<gateway.port>`. So a command run beside the
//! process (`docker exec node openclaw maintenance on`) needs no flags and no token.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use clap::Args;
use openclaw_proto::ids::InstanceId;
use reqwest::Url;

use super::exit::{Exit, Failure};
use super::settings::{self, Settings};

/// Where and how to reach a running gateway.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Finding the gateway")]
pub(crate) struct Connection {
    /// Where the gateway answers: http://HOST:PORT, https://HOST or unix:/path/to/admin.sock. Several, separated by
    /// commas or repeated, are tried in turn [default: the instance running here]
    #[arg(long, value_name = "URL", env = "OPENCLAW_URL", hide_env_values = true, value_delimiter = ',')]
    pub(crate) url: Vec<String>,
    /// The running instance to talk to, by its id; needed where several share one data directory
    /// [OPENCLAW_INSTANCE_ID]
    #[arg(long, value_name = "ID")]
    pub(crate) instance_id: Option<InstanceId>,
    /// Data directory of the gateway, where its admin socket is [default: storage.dataDir of the
    /// configuration; OPENCLAW_DATA_DIR]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Configuration file, read for the data directory, port and token [default: OPENCLAW_CONFIG_PATH, then
    /// ~/.openclaw/openclaw.json]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// File holding the bearer token; the admin socket needs none [default: OPENCLAW_GATEWAY_TOKEN, then the
    /// configuration]
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Longest wait for one answer, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) request_timeout: u64,
}

/// One address of a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Http(Url),
    Socket(PathBuf),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Http(url) => f.write_str(url.as_str().trim_end_matches('/')),
            Self::Socket(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Reads `http://..`, `https://..` or `unix:/..`.
///
/// # Errors
/// Says what is wrong with the text; never repeats a password in it.
pub(crate) fn parse_place(text: &str) -> Result<Place, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        if !path.starts_with('/') {
            return Err("a socket is named by its absolute path, as in unix:/var/lib/openclaw/node-1/admin.sock".into());
        }
        return Ok(Place::Socket(path.into()));
    }
    let url = Url::parse(text).map_err(|error| format!("{error}; expected http://HOST:PORT or unix:/path"))?;
    match url.scheme() {
        "http" | "https" => {}
        scheme => return Err(format!("the scheme {scheme:?} is not http, https or unix")),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("credentials do not belong in a URL; set OPENCLAW_GATEWAY_TOKEN".into());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("expected scheme, host, port and at most a path prefix".into());
    }
    Ok(Place::Http(url))
}

/// What a client needs to know.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// At least one.
    pub(crate) places: Vec<Place>,
    pub(crate) token: Option<String>,
}

/// Decides where to go, by the order in this module's first lines.
///
/// # Errors
/// A token file that cannot be read, or several live instances of which none was named.
pub(crate) fn resolve(connection: &Connection) -> Result<Target, Failure> {
    // Parsed here and not by the argument parser, whose message would repeat a password.
    let given = connection
        .url
        .iter()
        .map(|url| parse_place(url).map_err(|error| Failure::usage(format!("--url (or OPENCLAW_URL): {error}"))));
    let given = given.collect::<Result<Vec<_>, _>>()?;
    let settings = settings::local(connection)?;
    let token = match &connection.token_file {
        Some(file) => Some(read_token(file)?),
        None => settings.token.clone(),
    };
    let places = if given.is_empty() { vec![local(&settings)?] } else { given };
    Ok(Target { places, token })
}

fn read_token(file: &Path) -> Result<String, Failure> {
    /// Longer than any token; a wrong file named by mistake is not read whole.
    const MAX_BYTES: u64 = 16 * 1024;
    let fail = |why: String| Failure::usage(format!("the token file {} {why}", file.display()));
    let bytes = std::fs::metadata(file).map_err(|error| fail(format!("cannot be read: {error}")))?.len();
    if bytes > MAX_BYTES {
        return Err(fail(format!("has {bytes} bytes; at most {MAX_BYTES} are allowed")));
    }
    let text = std::fs::read_to_string(file).map_err(|error| fail(format!("cannot be read: {error}")))?;
    let token = text.trim();
    if token.is_empty() || !token.chars().all(|c| c.is_ascii_graphic()) {
        return Err(fail("must hold one line of visible ASCII characters".into()));
    }
    Ok(token.to_owned())
}

fn local(settings: &Settings) -> Result<Place, Failure> {
    if let Some(id) = &settings.instance_id {
        let socket = settings.data_dir.join(id.as_str()).join(SOCKET);
        if is_live(&socket)? {
            return Ok(Place::Socket(socket));
        }
    } else {
        let mut live = live_sockets(&settings.data_dir)?;
        if live.len() > 1 {
            let names: Vec<&str> = live.iter().map(|(name, _)| name.as_str()).collect();
            return Err(Failure::usage(format!("several instances run here: {}", names.join(", ")))
                .hint("say which one with --instance-id"));
        }
        if let Some((_, socket)) = live.pop() {
            return Ok(Place::Socket(socket));
        }
    }
    let url = format!("http://127.0.0.1:{}", settings.port);
    parse_place(&url).map_err(|error| Failure::usage(format!("{url}: {error}")))
}

const SOCKET: &str = "admin.sock";
/// A data directory holds a handful of instances; one with more entries than this is something else.
const MAX_INSTANCES: usize = 256;

fn live_sockets(data_dir: &Path) -> Result<Vec<(String, PathBuf)>, Failure> {
    let Ok(entries) = std::fs::read_dir(data_dir) else { return Ok(Vec::new()) };
    let mut live = Vec::new();
    for entry in entries.take(MAX_INSTANCES).flatten() {
        let socket = entry.path().join(SOCKET);
        if is_live(&socket)? {
            live.push((entry.file_name().to_string_lossy().into_owned(), socket));
        }
    }
    live.sort();
    Ok(live)
}

/// A killed process leaves its socket behind, so only one that accepts counts.
fn is_live(socket: &Path) -> Result<bool, Failure> {
    match UnixStream::connect(socket) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Err(Failure::new(Exit::Refused, format!("{}: permission denied", socket.display()))
                .hint("run it as the user that runs the gateway, or name the gateway with --url"))
        }
        Err(_) => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_urls_without_secrets_or_absolute_sockets() {
        assert_eq!(parse_place("http://127.0.0.1:3000").unwrap().to_string(), "http://127.0.0.1:3000");
        assert_eq!(parse_place("unix:/a/admin.sock"), Ok(Place::Socket("/a/admin.sock".into())));
        assert_eq!(parse_place("unix:///a/admin.sock"), Ok(Place::Socket("/a/admin.sock".into())));
        for bad in ["", "127.0.0.1:3000", "ftp://x", "unix:a", "http://u:p@x", "http://x/?token=1", "http://x/#token=1"]
        {
            let error = parse_place(bad).unwrap_err();
            assert!(!error.contains("u:p"), "{error}");
        }
    }

    #[test]
    fn the_only_live_socket_is_found_and_a_dead_one_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let settings = |id: Option<&str>| Settings {
            data_dir: dir.path().to_owned(),
            instance_id: id.map(|id| InstanceId::parse(id).unwrap()),
            port: 3999,
            token: None,
        };
        assert_eq!(local(&settings(None)).unwrap().to_string(), "http://127.0.0.1:3999");

        let socket = |name: &str| {
            std::fs::create_dir_all(dir.path().join(name)).unwrap();
            dir.path().join(name).join(SOCKET)
        };
        drop(std::os::unix::net::UnixListener::bind(socket("dead")).unwrap());
        assert_eq!(local(&settings(None)).unwrap().to_string(), "http://127.0.0.1:3999");

        let _one = std::os::unix::net::UnixListener::bind(socket("node-1")).unwrap();
        assert_eq!(local(&settings(None)), Ok(Place::Socket(dir.path().join("node-1").join(SOCKET))));

        let _two = std::os::unix::net::UnixListener::bind(socket("node-2")).unwrap();
        let failure = local(&settings(None)).unwrap_err();
        assert_eq!(
            failure.text(),
            "error: several instances run here: node-1, node-2; say which one with --instance-id"
        );
        assert_eq!(local(&settings(Some("node-2"))), Ok(Place::Socket(dir.path().join("node-2").join(SOCKET))));
        assert_eq!(local(&settings(Some("dead"))).unwrap().to_string(), "http://127.0.0.1:3999");
    }

    #[test]
    fn a_token_file_is_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        std::fs::write(&file, " s3cret\n").unwrap();
        assert_eq!(read_token(&file).unwrap(), "s3cret");
        for bad in ["", "\n", "a b", "a\nb", "\u{e9}"] {
            std::fs::write(&file, bad).unwrap();
            assert_eq!(read_token(&file).unwrap_err().exit(), Exit::Usage, "{bad:?}");
        }
        std::fs::write(&file, "x".repeat(20_000)).unwrap();
        assert!(read_token(&file).unwrap_err().text().contains("has 20000 bytes"));
        assert!(read_token(&dir.path().join("none")).unwrap_err().text().contains("cannot be read"));
    }
}
