//! Where settings come from, and which wins: defaults, then the file, then the environment, then flags. Tokens of bots are the
//! exception: the environment gives them only where the file does not, as in upstream.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::channels::Token;
use crate::decode::{self, Stranger, Unknown, decode};
use crate::document::{self, Member, Node, Value};
use crate::problem::{Errors, Problem, Source, Warning};
use crate::upstream::{self, Whose};
use crate::{Channels, Config, logging};

/// How many files may include each other in a row.
const MAX_INCLUDE_DEPTH: usize = 8;

/// How many files may be read for one set of settings, however they include each other.
const MAX_FILES: usize = 256;

/// Environment variables that are settings, and their keys.
pub const VARIABLES: &[(&str, &str)] = &[
    ("OPENCLAW_DATA_DIR", "storage.dataDir"),
    ("OPENCLAW_INSTANCE_ID", "cluster.instanceId"),
    ("OPENCLAW_CLUSTER_ID", "cluster.id"),
    ("OPENCLAW_CLUSTER_BOOTSTRAP", "cluster.bootstrap"),
    ("OPENCLAW_CLUSTER_JOIN", "cluster.join"),
    ("OPENCLAW_CLUSTER_SECRET", "cluster.peer.secret"),
    ("OPENCLAW_PEER_LISTEN", "cluster.peer.listen"),
    ("OPENCLAW_PEER_ADVERTISE", "cluster.peer.advertise"),
    ("OPENCLAW_HTTP_ADVERTISE", "cluster.advertiseHttp"),
    ("OPENCLAW_GATEWAY_PORT", "gateway.port"),
    ("OPENCLAW_GATEWAY_BIND", "gateway.bind"),
    ("OPENCLAW_GATEWAY_TOKEN", "gateway.auth.token"),
    ("OPENCLAW_LOG_LEVEL", "logging.level"),
    ("OPENCLAW_LOG_FORMAT", "logging.format"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "diagnostics.otel.endpoint"),
    ("OTEL_SERVICE_NAME", "diagnostics.otel.serviceName"),
    ("OTEL_TRACES_SAMPLER_ARG", "diagnostics.otel.sampleRate"),
    ("OPENCLAW_ECHO_TOKEN_DELAY_MS", "models.providers.echo.tokenDelayMs"),
];

/// Where settings come from.
pub struct Sources<'a> {
    /// The file of `--config`. Without it: `OPENCLAW_CONFIG_PATH`, else `openclaw.json` below `OPENCLAW_STATE_DIR`, else
    /// `~/.openclaw/openclaw.json`. Only a file that was named itself must exist.
    pub file: Option<PathBuf>,
    /// Looks an environment variable up. An empty value counts as none, except inside `${...}`.
    pub env: &'a dyn Fn(&str) -> Option<String>,
    /// Values of flags, the later ones winning.
    pub overrides: Vec<Override>,
    /// Whether keys that only upstream knows are ignored with a warning.
    pub lenient: bool,
}

/// A setting that was given as a command-line flag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    /// The flag, for messages: `--port`.
    pub flag: &'static str,
    /// The key: `gateway.port`.
    pub key: &'static str,
    /// The value as it was written.
    pub value: String,
}

/// Settings, and what there is to say about them.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The settings; `validate` has found nothing wrong with them.
    pub config: Config,
    /// What is odd about them.
    pub warnings: Vec<Warning>,
    /// The file that was read, if any.
    pub file: Option<PathBuf>,
    /// Where each setting that has not its default was written.
    pub sources: BTreeMap<String, Source>,
}

/// Reads, merges, checks and returns the settings.
///
/// # Errors
/// All that is wrong, as far as it can be told at once: a file with a syntax error hides what else is wrong in it, and
/// rules between settings are checked once each of them can be read.
pub fn load(sources: Sources<'_>) -> Result<Loaded, Errors> {
    let variable = |name: &str| (sources.env)(name).filter(|value| !value.is_empty());
    let one = |source, message| Errors(vec![Problem { source, key: String::new(), message }]);

    let (file, must_exist) = match (sources.file, variable("OPENCLAW_CONFIG_PATH")) {
        (Some(file), _) => (Some(file), Some(Source::Flag("--config"))),
        (None, Some(file)) => (Some(PathBuf::from(file)), Some(Source::Variable("OPENCLAW_CONFIG_PATH"))),
        (None, None) => (state_dir(&variable).map(|dir| dir.join("openclaw.json")), None),
    };

    let mut files = Files { env: sources.env, read: 0, stack: Vec::new(), problems: Vec::new() };
    let (mut root, file) = match file {
        // A file that cannot be looked at is not an absent one: reading it says why.
        Some(path) if must_exist.is_some() || path.try_exists().unwrap_or(true) => {
            let root = files.read(&path, &must_exist.unwrap_or_default());
            (root.unwrap_or_else(Node::object), Some(path))
        }
        Some(_) | None => (Node::object(), None),
    };
    let mut problems = files.problems;
    if !matches!(root.value, Value::Object(_)) {
        return Err(one(root.source, "expected an object with the sections of settings".into()));
    }
    // For editors; upstream exempts it as well.
    if let Value::Object(members) = &mut root.value {
        members.retain(|member| member.key != "$schema");
    }

    for &(name, key) in VARIABLES {
        if let Some(value) = variable(name) {
            root.set(&key.split('.').collect::<Vec<_>>(), Node::loose(value, Source::Variable(name)));
        }
    }
    for Override { flag, key, value } in sources.overrides {
        root.set(&key.split('.').collect::<Vec<_>>(), Node::loose(value, Source::Flag(flag)));
    }
    name_the_api(&mut root);
    for token in Token::ALL {
        if let (Some(value), Some(mut keys)) = (variable(token.variable), without_token(&root, token)) {
            keys.push(token.key);
            root.set(&keys, Node::loose(value, Source::Variable(token.variable)));
        }
    }

    let mut ignored = BTreeMap::from([(false, Vec::new()), (true, Vec::new())]);
    let decoded = decode(root.clone(), |path, stranger| {
        let (whose, shown) = match stranger {
            Stranger::Key(_) => (upstream::whose(path), document::join(path)),
            Stranger::Word(word, _) => (upstream::whose_word(path, word), format!("{} {word:?}", document::join(path))),
        };
        match (whose, stranger, sources.lenient) {
            (Whose::Later | Whose::Upstream, _, true) => {
                ignored.entry(whose == Whose::Later).or_default().push(shown);
                Unknown::Ignore
            }
            (Whose::Later, _, false) => Unknown::Refuse("not supported by this version yet".into()),
            (Whose::Upstream, Stranger::Key(_), false) => {
                Unknown::Refuse("only upstream OpenClaw knows this key; --lenient-config ignores such keys".into())
            }
            (Whose::Upstream, Stranger::Word(word, known), false) => Unknown::Refuse(format!(
                "only upstream OpenClaw knows {word:?}, here are {}; --lenient-config ignores such settings",
                quoted(known)
            )),
            (Whose::Nobody, Stranger::Key(known), _) => Unknown::Refuse(unknown_key(path, known)),
            (Whose::Nobody, Stranger::Word(word, known), _) => Unknown::Refuse(unknown_word(word, known)),
        }
    });
    let mut config = match decoded {
        Ok(config) if problems.is_empty() => config,
        Ok(_) => return Err(sorted(problems)),
        Err(more) => {
            problems.extend(more);
            return Err(sorted(problems));
        }
    };

    let place = |problem: &mut Problem| {
        if problem.source == Source::Default {
            problem.source = source_of(&root, &problem.key);
        }
    };
    let data_dir = root.get("storage").and_then(|storage| storage.node.get("dataDir"));
    if let (None, Some(dir)) = (data_dir, variable("OPENCLAW_STATE_DIR")) {
        config.storage.data_dir = PathBuf::from(dir).join("cluster");
    }
    expand_home(&mut config, variable("HOME").as_deref(), &mut problems);
    let (found, odd) = config.check();
    problems.extend(found);
    problems.iter_mut().for_each(place);
    if !problems.is_empty() {
        return Err(sorted(problems));
    }

    let mut warnings = Vec::new();
    for (later, keys) in ignored.into_iter().filter(|(_, keys)| !keys.is_empty()) {
        let why = if later { "not supported by this version yet" } else { "only upstream OpenClaw knows them" };
        let message = format!("ignored under --lenient-config ({why}): {}", keys.join(", "));
        warnings.push(Problem { source: Source::Default, key: String::new(), message });
    }
    warnings.extend(odd.into_iter().map(|mut warning| {
        place(&mut warning);
        warning
    }));
    let mut sources = BTreeMap::new();
    list_sources(&root, &mut Vec::new(), &mut sources);
    Ok(Loaded { config, warnings, file, sources })
}

/// The directory of everything that has no place of its own.
fn state_dir(variable: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let home = || variable("HOME").map(|home| PathBuf::from(home).join(".openclaw"));
    variable("OPENCLAW_STATE_DIR").map(PathBuf::from).or_else(home)
}

/// In the order of the text, file by file; a problem without a place comes last.
fn sorted(mut problems: Vec<Problem>) -> Errors {
    problems.sort_by_key(|problem| match &problem.source {
        Source::File { file, line, column } => (0, Some(Arc::clone(file)), *line, *column),
        Source::Variable(_) => (1, None, 0, 0),
        Source::Flag(_) => (2, None, 0, 0),
        Source::Default => (3, None, 0, 0),
    });
    Errors(problems)
}

fn unknown_key(path: &[String], known: &[&'static str]) -> String {
    let name = path.last().map_or("", String::as_str);
    match decode::nearest(name, known) {
        Some(near) => format!("unknown key; did you mean `{near}`?"),
        None => format!("unknown key; known here are {}", list(known)),
    }
}

fn unknown_word(word: &str, known: &[&'static str]) -> String {
    let hint = decode::nearest(word, known).map(|near| format!("; did you mean \"{near}\"?")).unwrap_or_default();
    format!("{word:?} is none of {}{hint}", quoted(known))
}

fn quoted(words: &[&str]) -> String {
    words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ")
}

fn list(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// A provider that is named after what it speaks need not say so.
fn name_the_api(root: &mut Node) {
    for name in ["echo", "anthropic"] {
        let path = ["models", "providers", name];
        let provider = path.iter().try_fold(&*root, |node, key| node.get(key).map(|member| &member.node));
        if let Some(provider) =
            provider.filter(|node| matches!(node.value, Value::Object(_)) && node.get("api").is_none())
        {
            let api = Node::loose(name, provider.source.clone());
            root.set(&["models", "providers", name, "api"], api);
        }
    }
}

/// The keys of the account `default` of a channel, if it is to run and has no token.
fn without_token(root: &Node, token: Token) -> Option<Vec<&'static str>> {
    let section = &root.get("channels")?.node.get(token.channel)?.node;
    let accounts = section.get("accounts").map(|member| &member.node);
    let (mut keys, mut account) = (vec!["channels", token.channel], section);
    if let Some(default) = accounts.and_then(|accounts| accounts.get(Channels::DEFAULT_ACCOUNT)) {
        keys.extend(["accounts", Channels::DEFAULT_ACCOUNT]);
        account = &default.node;
    } else if matches!(accounts, Some(Node { value: Value::Object(others), .. }) if !others.is_empty()) {
        return None;
    }
    let open = |node: &Node| {
        let value = |key| node.get(key).map(|member| &member.node.value);
        let off = match value("enabled") {
            Some(Value::Text { text, loose: true }) => matches!(text.as_str(), "false" | "0"),
            written => written == Some(&Value::Bool(false)),
        };
        !off && matches!(value(token.key), None | Some(Value::Null))
    };
    (open(section) && open(account)).then_some(keys)
}

fn expand_home(config: &mut Config, home: Option<&str>, problems: &mut Vec<Problem>) {
    let mut expand = |key: &str, path: &mut PathBuf| {
        let Ok(rest) = path.strip_prefix("~") else { return };
        match home {
            Some(home) => *path = Path::new(home).join(rest),
            None => problems.push(Problem {
                source: Source::Default,
                key: key.to_owned(),
                message: format!("{} needs HOME, which is not set", path.display()),
            }),
        }
    };
    expand("storage.dataDir", &mut config.storage.data_dir);
    if let Some(dir) = &mut config.storage.sessions.dir {
        expand("storage.sessions.dir", dir);
    }
    if let Some(tls) = &mut config.cluster.peer.tls {
        expand("cluster.peer.tls.ca", &mut tls.ca);
        expand("cluster.peer.tls.cert", &mut tls.cert);
        expand("cluster.peer.tls.key", &mut tls.key);
    }
    if let logging::Output::File(path) = &mut config.logging.output {
        expand("logging.output", path);
    }
}

/// Where `key` was written; if it was not, where the nearest section around it was.
fn source_of(root: &Node, key: &str) -> Source {
    let mut source = Source::Default;
    let (mut node, mut rest) = (root, key);
    while !rest.is_empty() {
        // Keys may contain dots, so the members are asked rather than the text split.
        let Value::Object(members) = &node.value else { break };
        let name = |member: &&Member| {
            let name = document::join(std::slice::from_ref(&member.key));
            rest.strip_prefix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        let Some(member) = members.iter().find(name) else { break };
        rest = &rest[document::join(std::slice::from_ref(&member.key)).len()..];
        node = &member.node;
        source = node.source.clone();
        if let (Value::List(items), Some((index, after))) =
            (&node.value, rest.strip_prefix('[').and_then(|rest| rest.split_once(']')))
        {
            let Some(item) = index.parse().ok().and_then(|index: usize| items.get(index)) else { break };
            node = item;
            source = node.source.clone();
            rest = after;
        }
        rest = rest.trim_start_matches('.');
    }
    source
}

fn list_sources(node: &Node, path: &mut Vec<String>, sources: &mut BTreeMap<String, Source>) {
    match &node.value {
        Value::Object(members) => {
            for member in members {
                path.push(member.key.clone());
                list_sources(&member.node, path, sources);
                path.pop();
            }
        }
        Value::Null
        | Value::Refused
        | Value::Bool(_)
        | Value::Unsigned(_)
        | Value::Signed(_)
        | Value::Float(_)
        | Value::Text { .. }
        | Value::List(_) => drop(sources.insert(document::join(path), node.source.clone())),
    }
}

/// The files of one set of settings, as they are read.
struct Files<'a> {
    env: &'a dyn Fn(&str) -> Option<String>,
    read: usize,
    /// The files that are including each other at the moment.
    stack: Vec<PathBuf>,
    problems: Vec<Problem>,
}

impl Files<'_> {
    fn refuse(&mut self, source: &Source, key: &str, message: String) {
        self.problems.push(Problem { source: source.clone(), key: key.to_owned(), message });
    }

    /// Reads `path`, which was named at `named`, with all that it includes. `None` after a problem.
    fn read(&mut self, path: &Path, named: &Source) -> Option<Node> {
        let shown = path.display();
        let text = match read_bounded(path) {
            Ok(text) => text,
            Err(error) => {
                self.refuse(named, "", format!("cannot read {shown}: {error}"));
                return None;
            }
        };
        let identity = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        if self.stack.contains(&identity) {
            self.refuse(named, "", format!("{shown} includes itself"));
            return None;
        }
        if self.stack.len() > MAX_INCLUDE_DEPTH || self.read >= MAX_FILES {
            let limits = format!("more than {MAX_INCLUDE_DEPTH} files in a row or {MAX_FILES} in all");
            self.refuse(named, "", format!("{shown} is not included: {limits}"));
            return None;
        }
        self.read += 1;
        let (mut root, doubled) = match document::parse(&text, &Arc::from(path)) {
            Ok(parsed) => parsed,
            Err(problem) => {
                self.problems.push(problem);
                return None;
            }
        };
        self.problems.extend(doubled);
        self.stack.push(identity);
        let directory = path.parent().unwrap_or(Path::new(""));
        self.resolve(&mut root, directory, &mut Vec::new());
        self.stack.pop();
        Some(root)
    }

    /// Replaces `${...}` and `$include` in `node` and below.
    fn resolve(&mut self, node: &mut Node, directory: &Path, path: &mut Vec<String>) {
        match &mut node.value {
            Value::Null | Value::Refused | Value::Bool(_) | Value::Unsigned(_) | Value::Signed(_) | Value::Float(_) => {
            }
            Value::Text { text, loose } => match substitute(text, self.env) {
                Ok(None) => {}
                Ok(Some(changed)) => (*text, *loose) = (changed, true),
                Err(message) => {
                    self.refuse(&node.source, &document::join(path), message);
                    node.value = Value::Refused;
                }
            },
            Value::List(items) => {
                for (n, item) in items.iter_mut().enumerate() {
                    path.push(format!("[{n}]"));
                    self.resolve(item, directory, path);
                    path.pop();
                }
            }
            Value::Object(members) => {
                for member in members.iter_mut() {
                    path.push(member.key.clone());
                    self.resolve(&mut member.node, directory, path);
                    path.pop();
                }
                let Some(at) = members.iter().position(|member| member.key == "$include") else { return };
                let include = members.remove(at);
                let Some(mut included) = self.include(include.node, directory, path) else { return };
                let alone = members.is_empty();
                if !alone && !matches!(included.value, Value::Object(_)) {
                    path.push("$include".to_owned());
                    self.refuse(
                        &include.key_source,
                        &document::join(path),
                        "only an object can be merged with other keys".into(),
                    );
                    path.pop();
                    return;
                }
                if !alone {
                    let own = Node { value: Value::Object(std::mem::take(members)), source: node.source.clone() };
                    included.merge(own);
                }
                *node = included;
            }
        }
    }

    /// Reads the files that an `$include` names and lays them over each other in their order.
    fn include(&mut self, names: Node, directory: &Path, path: &[String]) -> Option<Node> {
        let names = match names {
            Node { value: Value::List(items), .. } => items,
            one => vec![one],
        };
        let mut merged: Option<Node> = None;
        for name in names {
            let Value::Text { text, .. } = &name.value else {
                if name.value != Value::Refused {
                    let key = document::join(&[path, &["$include".to_owned()]].concat());
                    self.refuse(&name.source, &key, "expected a path or a list of paths".into());
                }
                continue;
            };
            let Some(file) = self.read(&directory.join(text), &name.source) else { continue };
            match &mut merged {
                Some(merged) => merged.merge(file),
                None => merged = Some(file),
            }
        }
        merged
    }
}

fn read_bounded(path: &Path) -> Result<String, String> {
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    file.take(document::MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > document::MAX_BYTES {
        return Err(format!("it has more than {} bytes", document::MAX_BYTES));
    }
    String::from_utf8(bytes)
        .map_err(|error| format!("it is not UTF-8 from byte {} on", error.utf8_error().valid_up_to()))
}

/// Replaces `${NAME}` and `${NAME:-default}`; `$${` stands for `${`. `None` when there is nothing to replace.
fn substitute(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Option<String>, String> {
    if !text.contains("${") {
        return Ok(None);
    }
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let (before, from) = rest.split_at(at);
        if let Some(literal) = before.strip_suffix('$') {
            result.push_str(literal);
            result.push_str("${");
            rest = &from[2..];
            continue;
        }
        result.push_str(before);
        let Some(end) = from.find('}') else {
            return Err("`${` without `}`; write `$${` for the characters themselves".into());
        };
        let inside = &from[2..end];
        let (name, default) = match inside.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inside, None),
        };
        let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if !starts || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            // Not its text: this may be a password with odd characters.
            return Err("`${...}` does not name a variable; write `$${` for the characters themselves".into());
        }
        match (env(name), default) {
            (Some(value), None) => result.push_str(&value),
            (Some(value), Some(_)) if !value.is_empty() => result.push_str(&value),
            (_, Some(default)) => result.push_str(default),
            (None, None) => return Err(format!("environment variable {name} is not set")),
        }
        rest = &from[end + 1..];
    }
    result.push_str(rest);
    Ok(Some(result))
}
