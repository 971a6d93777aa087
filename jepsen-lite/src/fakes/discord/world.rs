//! Who and what there is: users, guilds, channels, messages, and how Discord writes each as JSON.
//!
//! It knows neither HTTP nor the gateway: it answers what happened, and others tell whoever should hear of it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::intents;
use super::record::unix_ms;

/// A snowflake: larger is later, and on the wire it is a string.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub u64);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Id {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Snowflakes count from the first second of 2015.
const EPOCH_MS: u64 = 1_420_070_400_000;
/// Messages that a channel keeps; the oldest are forgotten first.
const MESSAGES: usize = 100_000;
/// Earlier texts that a message keeps.
const EDITS: usize = 10_000;
/// Nonces that are remembered, whatever their age.
const NONCES: usize = 100_000;

#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    pub id: Id,
    pub channel: Id,
    pub author: Id,
    /// Whether the bot sent it.
    pub by_bot: bool,
    pub content: String,
    /// What it said before, oldest first.
    pub earlier: Vec<String>,
    pub nonce: Option<Value>,
    /// The message it answers.
    pub reference: Option<Id>,
    /// The files that came with it: names and sizes.
    pub files: Vec<(String, usize)>,
    pub embeds: Vec<Value>,
    pub unix_ms: u64,
    pub edited_ms: Option<u64>,
}

/// A message that is to be.
#[derive(Debug, Clone, Default)]
pub(super) struct Draft {
    pub(super) content: String,
    pub(super) nonce: Option<Value>,
    pub(super) reference: Option<Id>,
    pub(super) files: Vec<(String, usize)>,
    pub(super) embeds: Vec<Value>,
}

pub(super) struct User {
    name: String,
    bot: bool,
    pub(super) refuses_dms: bool,
}

struct Guild {
    name: String,
    unix_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Dm { user: Id },
    Guild { guild: Id },
    Thread { guild: Id, parent: Id, owner: Id },
}

impl Place {
    pub(super) fn guild(self) -> Option<Id> {
        match self {
            Self::Dm { .. } => None,
            Self::Guild { guild } | Self::Thread { guild, .. } => Some(guild),
        }
    }
}

pub(super) struct Channel {
    pub(super) place: Place,
    name: String,
    /// The bot may read here and not write.
    pub(super) muted: bool,
    /// How often the bot was seen typing.
    pub(super) typing: u64,
    pub(super) messages: VecDeque<Message>,
    last_message: Option<Id>,
    unix_ms: u64,
}

impl Channel {
    pub(super) fn message(&self, id: Id) -> Option<&Message> {
        let at = self.messages.binary_search_by_key(&id, |message| message.id).ok()?;
        self.messages.get(at)
    }
}

pub(super) struct World {
    last_id: u64,
    pub(super) bot: Id,
    users: BTreeMap<Id, User>,
    guilds: BTreeMap<Id, Guild>,
    channels: BTreeMap<Id, Channel>,
    nonces: HashMap<String, (Id, Id, Instant)>,
}

impl World {
    pub(super) fn new() -> Self {
        let mut world = Self {
            last_id: 0,
            bot: Id(0),
            users: BTreeMap::new(),
            guilds: BTreeMap::new(),
            channels: BTreeMap::new(),
            nonces: HashMap::new(),
        };
        world.bot = world.id();
        world.users.insert(world.bot, User { name: "bot".to_owned(), bot: true, refuses_dms: false });
        world
    }

    /// Larger than every one before, and of this moment.
    pub(super) fn id(&mut self) -> Id {
        self.last_id = (self.last_id + 1).max(unix_ms().saturating_sub(EPOCH_MS) << 22);
        Id(self.last_id)
    }

    pub(super) fn add_user(&mut self, name: &str) -> Id {
        let id = self.id();
        self.users.insert(id, User { name: name.to_owned(), bot: false, refuses_dms: false });
        id
    }

    pub(super) fn add_guild(&mut self, name: &str) -> Id {
        let id = self.id();
        self.guilds.insert(id, Guild { name: name.to_owned(), unix_ms: unix_ms() });
        id
    }

    /// `None`: there is no such guild.
    pub(super) fn add_channel(&mut self, guild: Id, name: &str) -> Option<Id> {
        self.guilds.get(&guild)?;
        let id = self.id();
        Some(self.insert_channel(id, Place::Guild { guild }, name))
    }

    /// The one channel of the bot and this user; `None`: there is no such user.
    pub(super) fn dm(&mut self, user: Id) -> Option<Id> {
        self.users.get(&user).filter(|user| !user.bot)?;
        let known = self.channels.iter().find(|(_, channel)| channel.place == Place::Dm { user }).map(|(id, _)| *id);
        Some(known.unwrap_or_else(|| {
            let id = self.id();
            self.insert_channel(id, Place::Dm { user }, "")
        }))
    }

    /// A thread on a message has that message's id.
    pub(super) fn add_thread(&mut self, parent: Id, on: Option<Id>, owner: Id, name: &str) -> Option<Id> {
        let guild = self.channels.get(&parent)?.place.guild()?;
        let id = on.unwrap_or_else(|| self.id());
        Some(self.insert_channel(id, Place::Thread { guild, parent, owner }, name))
    }

    fn insert_channel(&mut self, id: Id, place: Place, name: &str) -> Id {
        let channel = Channel {
            place,
            name: name.to_owned(),
            muted: false,
            typing: 0,
            messages: VecDeque::new(),
            last_message: None,
            unix_ms: unix_ms(),
        };
        self.channels.insert(id, channel);
        id
    }

    pub(super) fn channel(&self, id: Id) -> Option<&Channel> {
        self.channels.get(&id)
    }

    pub(super) fn channel_mut(&mut self, id: Id) -> Option<&mut Channel> {
        self.channels.get_mut(&id)
    }

    pub(super) fn user(&self, id: Id) -> Option<&User> {
        self.users.get(&id)
    }

    pub(super) fn user_mut(&mut self, id: Id) -> Option<&mut User> {
        self.users.get_mut(&id)
    }

    pub(super) fn guilds(&self) -> impl Iterator<Item = Id> + '_ {
        self.guilds.keys().copied()
    }

    /// `None`: there is no such channel.
    pub(super) fn add_message(&mut self, channel: Id, author: Id, draft: Draft) -> Option<Message> {
        self.channels.get(&channel)?;
        let message = Message {
            id: self.id(),
            channel,
            author,
            by_bot: author == self.bot,
            content: draft.content,
            earlier: Vec::new(),
            nonce: draft.nonce,
            reference: draft.reference,
            files: draft.files,
            embeds: draft.embeds,
            unix_ms: unix_ms(),
            edited_ms: None,
        };
        if message.by_bot
            && let Some(nonce) = &message.nonce
        {
            if self.nonces.len() >= NONCES {
                self.nonces.clear();
            }
            self.nonces.insert(nonce_key(nonce), (channel, message.id, Instant::now()));
        }
        let channel = self.channels.get_mut(&channel)?;
        channel.last_message = Some(message.id);
        channel.messages.push_back(message.clone());
        if channel.messages.len() > MESSAGES {
            channel.messages.pop_front();
        }
        Some(message)
    }

    /// What the bot sent with this nonce within `lifetime`.
    pub(super) fn by_nonce(&self, nonce: &Value, lifetime: Duration) -> Option<&Message> {
        let (channel, message, at) = self.nonces.get(&nonce_key(nonce))?;
        if at.elapsed() > lifetime {
            return None;
        }
        self.channels.get(channel)?.message(*message)
    }

    pub(super) fn edit(&mut self, channel: Id, message: Id, content: &str) -> Option<Message> {
        let channel = self.channels.get_mut(&channel)?;
        let at = channel.messages.binary_search_by_key(&message, |message| message.id).ok()?;
        let message = channel.messages.get_mut(at)?;
        if message.earlier.len() >= EDITS {
            message.earlier.remove(0);
        }
        message.earlier.push(std::mem::replace(&mut message.content, content.to_owned()));
        message.edited_ms = Some(unix_ms());
        Some(message.clone())
    }

    pub(super) fn delete(&mut self, channel: Id, message: Id) -> Option<Message> {
        let channel = self.channels.get_mut(&channel)?;
        let at = channel.messages.binary_search_by_key(&message, |message| message.id).ok()?;
        channel.messages.remove(at)
    }

    fn mentions(&self, content: &str) -> Vec<Id> {
        let mut found: Vec<Id> = Vec::new();
        for part in content.split("<@").skip(1) {
            let id = part.split_once('>').and_then(|(id, _)| id.trim_start_matches('!').parse().ok());
            found.extend(id.filter(|id| self.users.contains_key(id) && !found.contains(id)));
        }
        found
    }

    /// Whether a session with these intents may read what the message says.
    fn readable(&self, message: &Message, held: u64) -> bool {
        let direct = self.channel(message.channel).is_some_and(|channel| channel.place.guild().is_none());
        held & intents::MESSAGE_CONTENT != 0
            || direct
            || message.by_bot
            || self.mentions(&message.content).contains(&self.bot)
    }

    pub(super) fn user_json(&self, id: Id) -> Value {
        let (name, bot) = self.users.get(&id).map_or(("unknown", false), |user| (user.name.as_str(), user.bot));
        json!({
            "id": id, "username": name, "discriminator": "0", "global_name": name, "avatar": null, "bot": bot,
            "flags": 0, "public_flags": 0,
        })
    }

    pub(super) fn me_json(&self) -> Value {
        let mut me = self.user_json(self.bot);
        me["verified"] = true.into();
        me["mfa_enabled"] = true.into();
        me["locale"] = "en-US".into();
        me["email"] = Value::Null;
        me
    }

    pub(super) fn application_json(&self) -> Value {
        json!({
            "id": self.bot, "name": "bot", "icon": null, "description": "", "bot_public": false,
            "bot_require_code_grant": false, "verify_key": "0", "team": null, "summary": "", "flags": 0,
        })
    }

    pub(super) fn channel_json(&self, id: Id) -> Value {
        let Some(channel) = self.channels.get(&id) else {
            return Value::Null;
        };
        let mut json = json!({"id": id, "last_message_id": channel.last_message, "flags": 0});
        match channel.place {
            Place::Dm { user } => {
                json["type"] = 1.into();
                json["recipients"] = json!([self.user_json(user)]);
                return json;
            }
            Place::Guild { guild } => {
                json["type"] = 0.into();
                json["guild_id"] = json!(guild);
                json["parent_id"] = Value::Null;
                json["topic"] = Value::Null;
                json["position"] = 0.into();
                json["permission_overwrites"] = json!([]);
                json["nsfw"] = false.into();
            }
            Place::Thread { guild, parent, owner } => {
                json["type"] = 11.into();
                json["guild_id"] = json!(guild);
                json["parent_id"] = json!(parent);
                json["owner_id"] = json!(owner);
                json["message_count"] = channel.messages.len().into();
                json["total_message_sent"] = channel.messages.len().into();
                json["member_count"] = 1.into();
                json["thread_metadata"] = json!({
                    "archived": false, "auto_archive_duration": 1440, "locked": false,
                    "archive_timestamp": timestamp(channel.unix_ms), "create_timestamp": timestamp(channel.unix_ms),
                });
            }
        }
        json["name"] = channel.name.as_str().into();
        json["rate_limit_per_user"] = 0.into();
        json
    }

    pub(super) fn guild_json(&self, id: Id) -> Value {
        let Some(guild) = self.guilds.get(&id) else {
            return Value::Null;
        };
        let joined_at = timestamp(guild.unix_ms);
        let within = |threads: bool| -> Vec<Value> {
            let here = self.channels.iter().filter(|(_, channel)| match channel.place {
                Place::Dm { .. } => false,
                Place::Guild { guild } => guild == id && !threads,
                Place::Thread { guild, .. } => guild == id && threads,
            });
            here.map(|(id, _)| self.channel_json(*id)).collect()
        };
        let mut json = unremarkable_guild();
        json["id"] = json!(id);
        json["name"] = guild.name.as_str().into();
        json["owner_id"] = json!(self.bot);
        json["joined_at"] = joined_at.as_str().into();
        json["member_count"] = self.users.len().into();
        json["channels"] = within(false).into();
        json["threads"] = within(true).into();
        json["roles"] = json!([{
            "id": id, "name": "@everyone", "color": 0, "hoist": false, "icon": null, "unicode_emoji": null,
            "colors": {"primary_color": 0, "secondary_color": null, "tertiary_color": null},
            "position": 0, "permissions": "2248473465835073", "managed": false, "mentionable": false, "flags": 0,
        }]);
        json["members"] = json!([{
            "user": self.user_json(self.bot), "nick": null, "avatar": null, "roles": [], "joined_at": joined_at,
            "deaf": false, "mute": false, "flags": 0, "pending": false,
        }]);
        json
    }

    /// A message as REST and the gateway write it for somebody with these intents.
    pub(super) fn message_json(&self, message: &Message, held: u64) -> Value {
        let mut json = self.bare_message_json(message, held);
        if let Some(answered) = message.reference {
            let guild = self.channel(message.channel).and_then(|channel| channel.place.guild());
            let mut reference = json!({"type": 0, "message_id": answered, "channel_id": message.channel});
            if let Some(guild) = guild {
                reference["guild_id"] = json!(guild);
            }
            json["message_reference"] = reference;
            let answered = self.channel(message.channel).and_then(|channel| channel.message(answered));
            json["referenced_message"] =
                answered.map_or(Value::Null, |answered| self.bare_message_json(answered, held));
        }
        json
    }

    fn bare_message_json(&self, message: &Message, held: u64) -> Value {
        let readable = self.readable(message, held);
        let mentions = self.mentions(&message.content);
        let files: Vec<Value> = message.files.iter().enumerate().map(|(n, file)| file_json(message, n, file)).collect();
        let mut json = json!({
            "id": message.id, "type": if message.reference.is_some() { 19 } else { 0 }, "channel_id": message.channel,
            "author": self.user_json(message.author), "content": if readable { message.content.as_str() } else { "" },
            "timestamp": timestamp(message.unix_ms), "edited_timestamp": message.edited_ms.map(timestamp),
            "tts": false, "mention_everyone": false, "mention_roles": [], "pinned": false, "flags": 0,
            "mentions": mentions.into_iter().map(|user| self.user_json(user)).collect::<Vec<_>>(),
            "attachments": if readable { files } else { Vec::new() },
            "embeds": if readable { message.embeds.as_slice() } else { &[] }, "components": [],
        });
        if let Some(nonce) = &message.nonce {
            json["nonce"] = nonce.clone();
        }
        json
    }

    /// A message as an event: with its guild and the author as a member of it.
    pub(super) fn message_event(&self, message: &Message, held: u64) -> Value {
        let mut json = self.message_json(message, held);
        if let Some(guild) = self.channel(message.channel).and_then(|channel| channel.place.guild()) {
            let joined = self.guilds.get(&guild).map_or(0, |guild| guild.unix_ms);
            json["guild_id"] = json!(guild);
            json["member"] =
                json!({"roles": [], "joined_at": timestamp(joined), "deaf": false, "mute": false, "flags": 0});
        }
        json
    }
}

/// What every guild of the fake has in common.
fn unremarkable_guild() -> Value {
    let mut json = json!({
        "region": "deprecated", "afk_timeout": 300, "verification_level": 0, "default_message_notifications": 0,
        "explicit_content_filter": 0, "mfa_level": 0, "system_channel_flags": 0, "max_members": 500_000,
        "premium_tier": 0, "premium_subscription_count": 0, "preferred_locale": "en-US", "nsfw_level": 0, "nsfw": false,
        "premium_progress_bar_enabled": false, "widget_enabled": false, "large": false, "unavailable": false,
    });
    let lists = ["emojis", "stickers", "features", "voice_states", "presences", "stage_instances"];
    for name in lists.into_iter().chain(["guild_scheduled_events", "soundboard_sounds"]) {
        json[name] = json!([]);
    }
    let absent = ["icon", "splash", "discovery_splash", "afk_channel_id", "application_id", "system_channel_id"];
    let too = ["rules_channel_id", "vanity_url_code", "description", "banner", "public_updates_channel_id", "hub_type"];
    for name in absent.into_iter().chain(too).chain(["safety_alerts_channel_id"]) {
        json[name] = Value::Null;
    }
    json
}

fn file_json(message: &Message, n: usize, (name, size): &(String, usize)) -> Value {
    let url = format!("https://cdn.invalid/attachments/{}/{}/{name}", message.channel, message.id);
    json!({"id": Id(message.id.0 + n as u64), "filename": name, "size": size, "url": url, "proxy_url": url})
}

/// A number and a string that look alike are one nonce.
fn nonce_key(nonce: &Value) -> String {
    nonce.as_str().map_or_else(|| nonce.to_string(), str::to_owned)
}

/// With six digits and an offset: some clients read nothing else.
fn timestamp(unix_ms: u64) -> String {
    let at = i64::try_from(unix_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    at.unwrap_or(jiff::Timestamp::UNIX_EPOCH).strftime("%Y-%m-%dT%H:%M:%S%.6f+00:00").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_discord_writes_them() {
        assert_eq!(timestamp(1_500_000_000_123), "2017-07-14T02:40:00.123000+00:00");
    }

    #[test]
    fn ids_grow_and_hold_their_time() {
        let mut world = World::new();
        let (before, one, two) = (unix_ms(), world.id(), world.id());
        assert!(one < two);
        assert!(((one.0 >> 22) + EPOCH_MS).abs_diff(before) < 60_000);
    }
}
