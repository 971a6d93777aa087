//! Which conversation a request means, and which agent answers in it.
//!
//! Pure: names in, names out. Keys are upstream's (`agent:<agent>:main`), lower case:
//! - `sessionKey` if the request has one; the agent is then the one that the key names, unless the request names it too;
//! - else one conversation per `user`: `agent:<agent>:openai-user:<user>`. A user that does not fit into a key as it is -
//!   upper case, spaces, too long - stands there as `sha256-<hash>`, so that no two users share a conversation;
//! - else the agent's main conversation, `agent:<agent>:main`.

use openclaw_config::session::{DmScope, GroupScope};
use openclaw_proto::ids::{AgentId, ParseError, SessionKey};
use sha2::{Digest, Sha256};

use crate::message::{InboundMessage, Place};

/// The agent that is always there.
pub const MAIN_AGENT: &str = "main";

/// Longest `user` that stands in a key as it is.
const MAX_USER_BYTES: usize = 128;

/// What a request says about where it belongs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Address<'a> {
    pub session_key: Option<&'a str>,
    pub agent_id: Option<&'a str>,
    pub user: Option<&'a str>,
}

/// Where it belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub session_key: SessionKey,
    pub agent_id: AgentId,
}

/// Why a request belongs nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    #[error("{field}: {error}")]
    Field { field: &'static str, error: ParseError },
    #[error("user must not be empty")]
    EmptyUser,
    #[error("agentId {agent_id} is not the agent of session key {session_key}")]
    AgentMismatch { agent_id: AgentId, session_key: SessionKey },
}

/// Resolves an address.
///
/// # Errors
/// [`RouteError`] names the field that is wrong.
pub fn route(address: Address<'_>) -> Result<Route, RouteError> {
    let named = address.agent_id.map(agent).transpose()?;
    if let Some(text) = address.session_key {
        let session_key =
            SessionKey::from_caller(text).map_err(|error| RouteError::Field { field: "sessionKey", error })?;
        let of_key = agent_of(&session_key);
        if let (Some(named), Some(of_key)) = (&named, &of_key)
            && named != of_key
        {
            return Err(RouteError::AgentMismatch { agent_id: named.clone(), session_key });
        }
        let agent_id = match of_key.or(named) {
            Some(agent_id) => agent_id,
            None => agent(MAIN_AGENT)?,
        };
        return Ok(Route { session_key, agent_id });
    }
    let agent_id = match named {
        Some(agent_id) => agent_id,
        None => agent(MAIN_AGENT)?,
    };
    let key = match address.user {
        Some(user) => format!("agent:{agent_id}:openai-user:{}", user_part(user)?),
        None => format!("agent:{agent_id}:main"),
    };
    let session_key = SessionKey::parse(key).map_err(|error| RouteError::Field { field: "user", error })?;
    Ok(Route { session_key, agent_id })
}

/// The conversation that a channel's message belongs to, in upstream's names.
///
/// # Errors
/// [`RouteError`] when the platform's ids do not fit into a key.
pub fn route_message(
    message: &InboundMessage,
    agent: &AgentId,
    dm: DmScope,
    group: GroupScope,
) -> Result<SessionKey, RouteError> {
    let (channel, account) = (message.account.channel(), message.account.account());
    let main = || format!("agent:{agent}:main");
    let key = match &message.place {
        Place::Direct { peer } => match dm {
            DmScope::Main => main(),
            DmScope::PerPeer => format!("agent:{agent}:direct:{peer}"),
            DmScope::PerChannelPeer => format!("agent:{agent}:{channel}:direct:{peer}"),
            DmScope::PerAccountChannelPeer => format!("agent:{agent}:{channel}:{account}:direct:{peer}"),
        },
        Place::Group { id, topic } => match (group, topic) {
            (GroupScope::Main, _) => main(),
            (GroupScope::PerGroup, None) => format!("agent:{agent}:{channel}:group:{id}"),
            (GroupScope::PerGroup, Some(topic)) => format!("agent:{agent}:{channel}:group:{id}:topic:{topic}"),
        },
    };
    SessionKey::parse(key.to_lowercase())
        .map_err(|error| RouteError::Field { field: "the place of the message", error })
}

fn agent(text: &str) -> Result<AgentId, RouteError> {
    AgentId::parse(text.trim().to_lowercase()).map_err(|error| RouteError::Field { field: "agentId", error })
}

/// The agent that a key of upstream's shape names.
fn agent_of(key: &SessionKey) -> Option<AgentId> {
    let (agent, _) = key.as_str().strip_prefix("agent:")?.split_once(':')?;
    AgentId::parse(agent).ok()
}

fn user_part(user: &str) -> Result<String, RouteError> {
    if user.trim().is_empty() {
        return Err(RouteError::EmptyUser);
    }
    let plain = user.len() <= MAX_USER_BYTES && SessionKey::parse(user).is_ok() && !user.starts_with("sha256-");
    if plain {
        return Ok(user.to_owned());
    }
    let hash = Sha256::digest(user.as_bytes());
    let digits: String = hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("sha256-{digits}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(
        session_key: Option<&str>,
        agent_id: Option<&str>,
        user: Option<&str>,
        expected: Result<(&str, &str), ()>,
    ) {
        let route = route(Address { session_key, agent_id, user });
        match (&route, expected) {
            (Ok(route), Ok((key, agent))) => {
                assert_eq!((route.session_key.as_str(), route.agent_id.as_str()), (key, agent));
            }
            (Err(_), Err(())) => {}
            (route, expected) => panic!("{route:?} is not {expected:?}"),
        }
    }

    #[test]
    fn requests_find_their_session() {
        check(None, None, None, Ok(("agent:main:main", "main")));
        check(None, Some("Ops"), None, Ok(("agent:ops:main", "ops")));
        check(None, None, Some("alice"), Ok(("agent:main:openai-user:alice", "main")));
        check(Some("Agent:Ops:Main"), None, None, Ok(("agent:ops:main", "ops")));
        check(Some("agent:ops:main"), Some("ops"), Some("ignored"), Ok(("agent:ops:main", "ops")));
        check(Some("my-session"), None, None, Ok(("my-session", "main")));
        check(Some("my-session"), Some("ops"), None, Ok(("my-session", "ops")));
    }

    #[test]
    fn what_names_nothing_is_refused() {
        check(Some(""), None, None, Err(()));
        check(Some("a b"), None, None, Err(()));
        check(Some("cron:job"), None, None, Err(()));
        check(Some("agent:ops:main"), Some("main"), None, Err(()));
        check(None, Some("no/agent"), None, Err(()));
        check(None, Some(""), None, Err(()));
        check(None, None, Some(" "), Err(()));
    }

    #[test]
    fn no_two_users_share_a_session() {
        let key = |user: &str| route(Address { user: Some(user), ..Address::default() }).unwrap().session_key;
        let long = "x".repeat(500);
        let users = ["bob", "Bob", "bob smith", "a/b", "sha256-00", &long, "ü", "bob@example.com"];
        let keys: std::collections::BTreeSet<_> = users.iter().map(|user| key(user)).collect();
        assert_eq!(keys.len(), users.len());
        assert_eq!(key("Bob"), key("Bob"));
    }
}
