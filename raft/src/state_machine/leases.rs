//! Channel leases: which instance runs which bot account.
//!
//! A lease hangs on its owner's epoch and ends with it, so a hundred accounts cost no renewal of their own. The log index
//! of a grant is its fencing token: it grows with each owner, over restarts and snapshots, and whatever an owner writes
//! for the account carries it. Nothing expires by a clock here: an epoch ends by `instances::expire`, an owner that lives
//! lets go by itself, and in the same command the account goes to whom it fits best ([`place`]).
//!
//! What fits: an instance that lives, has the account in its configuration, and is not draining; of those the one that
//! prefers it, else the one with the fewest.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openclaw_proto::ids::{ChannelAccount, InstanceId};
use openclaw_proto::state::{
    Cursor, Done, Fenced, Instance, Lease, MoveLease, NotFound, PlaceLeases, ReleaseLease, SaveCursor, Stale, outcome,
};

use super::change::{Answer, Change, Halt};
use super::{Event, Table, TableError, Tables, limits, read};
use crate::planted::{Bug, planted};

/// Accounts of one instance.
pub(super) const MAX_ACCOUNTS: usize = 256;
/// Of what a channel remembers about its platform.
pub const MAX_CURSOR_BYTES: usize = 4096;

/// The names in a command, checked.
pub(super) fn accounts(named: &[String]) -> Result<(), Halt> {
    if named.len() > MAX_ACCOUNTS {
        return Err(Halt::Refused(format!("{} channel accounts; at most {MAX_ACCOUNTS} are allowed", named.len())));
    }
    named.iter().try_for_each(|name| ChannelAccount::parse(name.as_str()).map(drop)).map_err(Halt::from)
}

/// Grants every account that has no living owner, as far as somebody can run it.
pub(super) fn place<T: Tables + ?Sized>(change: &mut Change<'_, T>) -> Result<(), TableError> {
    let instances: Vec<Instance> = read::instances(change.tables())?.into_iter().filter(|row| row.live).collect();
    let mut leases: BTreeMap<String, Lease> =
        read::leases(change.tables())?.into_iter().map(|lease| (lease.account.clone(), lease)).collect();
    for account in instances.iter().flat_map(|row| &row.accounts).collect::<BTreeSet<_>>() {
        leases.entry(account.clone()).or_insert_with(|| Lease { account: account.clone(), ..Lease::default() });
    }
    let owned = |lease: &Lease| instances.iter().any(|row| row.instance_id == lease.owner && row.epoch == lease.epoch);
    let mut load: BTreeMap<String, usize> = BTreeMap::new();
    for lease in leases.values().filter(|lease| owned(lease)) {
        *load.entry(lease.owner.clone()).or_default() += 1;
    }
    let orphans: Vec<Lease> = leases.into_values().filter(|lease| !owned(lease)).collect();
    for mut lease in orphans {
        match choose(&instances, &lease, &load) {
            Some(chosen) => {
                *load.entry(chosen.instance_id.clone()).or_default() += 1;
                grant(change, lease, chosen);
            }
            None if lease.owner.is_empty() => {}
            None => {
                lease.previous_owner = std::mem::take(&mut lease.owner);
                (lease.epoch, lease.moving_to) = (0, String::new());
                put(change, &lease);
            }
        }
    }
    Ok(())
}

fn choose<'a>(instances: &'a [Instance], lease: &Lease, load: &BTreeMap<String, usize>) -> Option<&'a Instance> {
    let able = instances.iter().filter(|row| row.accounts.contains(&lease.account));
    // A draining one is better than none.
    able.min_by_key(|row| {
        (
            row.draining,
            row.instance_id != lease.moving_to,
            !row.preferred.contains(&lease.account),
            load.get(&row.instance_id).copied().unwrap_or_default(),
            row.instance_id.clone(),
        )
    })
}

fn grant<T: Tables + ?Sized>(change: &mut Change<'_, T>, mut lease: Lease, to: &Instance) {
    if !lease.owner.is_empty() {
        lease.previous_owner = std::mem::take(&mut lease.owner);
    }
    lease.owner.clone_from(&to.instance_id);
    lease.epoch = to.epoch;
    lease.fencing_token = change.at.index;
    lease.granted_ms = change.now_ms;
    lease.moving_to.clear();
    put(change, &lease);
}

fn put<T: Tables + ?Sized>(change: &mut Change<'_, T>, lease: &Lease) {
    change.put(Table::Leases, lease.account.as_bytes().to_vec(), lease);
    change.events.push(Event::LeaseChanged(lease.clone()));
}

/// The account's lease if `presented` is its owner's token, else what the caller is told.
pub(super) fn owned<T: Tables + ?Sized>(
    change: &Change<'_, T>,
    account: &str,
    presented: u64,
) -> Result<Result<Lease, outcome::Kind>, TableError> {
    let Some(lease) = change.lease(account)? else { return Ok(Err(outcome::Kind::NotFound(NotFound {}))) };
    Ok(if !lease.owner.is_empty() && (lease.fencing_token == presented || planted(Bug::StaleToken)) {
        Ok(lease)
    } else {
        Err(outcome::Kind::Fenced(Fenced { presented, current: lease.fencing_token }))
    })
}

/// The owner has stopped: the account goes to who fits best, which may be the same instance again.
pub(super) fn release<T: Tables + ?Sized>(change: &mut Change<'_, T>, command: &ReleaseLease) -> Answer {
    let account = ChannelAccount::parse(command.account.as_str())?;
    match owned(change, account.as_str(), command.fencing_token)? {
        Ok(mut lease) => {
            lease.previous_owner = std::mem::take(&mut lease.owner);
            lease.epoch = 0;
            change.put(Table::Leases, lease.account.as_bytes().to_vec(), &lease);
            place(change)?;
            Ok(outcome::Kind::Done(Done {}))
        }
        // Released before, or lost: either way it is not the caller's.
        Err(outcome::Kind::Fenced(_)) => Ok(outcome::Kind::Stale(Stale {})),
        Err(other) => Ok(other),
    }
}

/// Notes where the account shall go; its owner, who sees the event, lets go in its own time.
pub(super) fn move_to<T: Tables + ?Sized>(change: &mut Change<'_, T>, command: &MoveLease) -> Answer {
    let account = ChannelAccount::parse(command.account.as_str())?;
    let to = InstanceId::parse(command.to.as_str())?;
    let Some(mut lease) = change.lease(account.as_str())? else { return Ok(outcome::Kind::NotFound(NotFound {})) };
    match change.instance(to.as_str())?.filter(|row| row.live) {
        Some(row) if row.accounts.contains(&lease.account) => {}
        Some(_) => return Err(Halt::Refused(format!("{to} does not have {account} in its configuration"))),
        None => return Err(Halt::Refused(format!("{to} is no live instance"))),
    }
    if lease.owner != to.as_str() {
        lease.moving_to = to.into();
        put(change, &lease);
        if lease.owner.is_empty() {
            place(change)?;
        }
    }
    Ok(outcome::Kind::Done(Done {}))
}

/// What the leader does from time to time: everything has an owner, and goes back to who should have it.
pub(super) fn place_again<T: Tables + ?Sized>(change: &mut Change<'_, T>, command: &PlaceLeases) -> Answer {
    place(change)?;
    let after = Duration::from_millis(command.failback_after_ms);
    let instances: Vec<Instance> = read::instances(change.tables())?.into_iter().filter(|row| row.live).collect();
    for mut lease in read::leases(change.tables())? {
        let preferred =
            |row: &&Instance| row.preferred.contains(&lease.account) && row.accounts.contains(&lease.account);
        if !lease.moving_to.is_empty() || instances.iter().filter(preferred).any(|row| row.instance_id == lease.owner) {
            continue;
        }
        let stable = |row: &&Instance| {
            !row.draining && Duration::from_millis(change.now_ms.saturating_sub(row.registered_ms)) >= after
        };
        if let Some(back) = instances.iter().filter(preferred).find(stable) {
            lease.moving_to.clone_from(&back.instance_id);
            put(change, &lease);
        }
    }
    Ok(outcome::Kind::Done(Done {}))
}

/// Where the owner stands with the platform.
pub(super) fn save_cursor<T: Tables + ?Sized>(change: &mut Change<'_, T>, command: &SaveCursor) -> Answer {
    let account = ChannelAccount::parse(command.account.as_str())?;
    limits::at_most("cursor", &command.data, MAX_CURSOR_BYTES)?;
    if let Err(outcome) = owned(change, account.as_str(), command.fencing_token)? {
        return Ok(outcome);
    }
    let row = Cursor { data: command.data.clone(), fencing_token: command.fencing_token, saved_ms: change.now_ms };
    change.put(Table::Cursors, account.as_str().as_bytes().to_vec(), &row);
    Ok(outcome::Kind::Done(Done {}))
}
