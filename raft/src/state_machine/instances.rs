//! Instances: who lives, for how long by compare-and-set alone, and who runs the turns of those who do not.
//!
//! Nothing here reads a clock to decide: the leader measures silence and proposes [`expire`], which matches only the
//! renewal that the leader saw, so that a renewal in between wins.

use openclaw_proto::ids::InstanceId;
use openclaw_proto::state::{
    Conflict, Done, ExpireInstance, ForgetInstance, Instance, InstanceRegistered, InstanceTaken, RegisterInstance,
    RenewInstance, SetDraining, Stale, Turn, outcome,
};

use super::change::{Answer, Change, Halt};
use super::{Event, Table, TableError, Tables, format, leases, limits, read, rendezvous, turns};

pub(super) fn register<T: Tables + ?Sized>(change: &mut Change<'_, T>, command: &RegisterInstance) -> Answer {
    let instance_id = InstanceId::parse(command.instance_id.as_str())?;
    limits::name("boot id", &command.boot_id, limits::MAX_LABEL_BYTES)?;
    limits::at_most("previous boot id", &command.previous_boot_id, limits::MAX_LABEL_BYTES)?;
    limits::at_most("http address", &command.http_addr, limits::MAX_LABEL_BYTES)?;
    limits::at_most("peer address", &command.peer_addr, limits::MAX_LABEL_BYTES)?;
    limits::at_most("version", &command.version, limits::MAX_LABEL_BYTES)?;
    if let Some(why) = format::too_old(command.format, format::active(change.tables())?) {
        return Err(Halt::Refused(why));
    }
    leases::accounts(&command.accounts)?;
    leases::accounts(&command.preferred)?;

    if let Some(row) = change.instance(instance_id.as_str())?
        && row.live
    {
        if row.boot_id == command.boot_id {
            return Ok(outcome::Kind::InstanceRegistered(InstanceRegistered { epoch: row.epoch }));
        }
        if row.boot_id != command.previous_boot_id {
            let Instance { boot_id, last_seen_ms, .. } = row;
            return Ok(outcome::Kind::InstanceTaken(InstanceTaken { boot_id, last_seen_ms }));
        }
        change.events.push(Event::InstanceGone { instance_id: instance_id.clone(), epoch: row.epoch });
    }

    // Found before the new epoch begins: what an earlier process of this instance ran is orphaned too.
    let mut orphans = Vec::new();
    for runner in read::runners(change.tables())? {
        if runner == instance_id.as_str() || !change.instance(&runner)?.is_some_and(|row| row.live) {
            orphans.extend(read::turns_by_runner(change.tables(), &runner)?);
        }
    }
    let epoch = change.at.index;
    change.put_instance(&Instance {
        instance_id: command.instance_id.clone(),
        boot_id: command.boot_id.clone(),
        epoch,
        renewal: 0,
        http_addr: command.http_addr.clone(),
        peer_addr: command.peer_addr.clone(),
        version: command.version.clone(),
        last_seen_ms: change.now_ms,
        draining: false,
        live: true,
        registered_ms: change.now_ms,
        accounts: command.accounts.clone(),
        preferred: command.preferred.clone(),
        format: command.format,
    });
    format::raise(change)?;
    change.events.push(Event::InstanceLive { instance_id, epoch });
    let candidates = Candidates::read(change)?;
    turns::abandon(change, orphans, &candidates, turns::MAX_ATTEMPTS)?;
    leases::place(change)?;
    Ok(outcome::Kind::InstanceRegistered(InstanceRegistered { epoch }))
}

/// Extends an epoch; never revives one that ended.
pub(super) fn renew<T: Tables + ?Sized>(change: &mut Change<'_, T>, command: &RenewInstance) -> Answer {
    let instance_id = InstanceId::parse(command.instance_id.as_str())?;
    match change.instance(instance_id.as_str())? {
        Some(mut row) if row.live && row.epoch == command.epoch && row.renewal < command.renewal => {
            row.renewal = command.renewal;
            row.last_seen_ms = change.now_ms;
            change.put_instance(&row);
            Ok(outcome::Kind::Done(Done {}))
        }
        Some(_) | None => Ok(outcome::Kind::Stale(Stale {})),
    }
}

pub(super) fn expire<T: Tables + ?Sized>(change: &mut Change<'_, T>, command: &ExpireInstance) -> Answer {
    let instance_id = InstanceId::parse(command.instance_id.as_str())?;
    let mut row = match change.instance(instance_id.as_str())? {
        Some(row)
            if row.live
                && row.epoch == command.epoch
                && row.renewal == command.renewal
                && command.term == change.at.term =>
        {
            row
        }
        Some(_) | None => return Ok(outcome::Kind::Stale(Stale {})),
    };
    row.live = false;
    change.put_instance(&row);
    change.events.push(Event::InstanceGone { instance_id, epoch: row.epoch });
    let orphans = read::turns_by_runner(change.tables(), &row.instance_id)?;
    let candidates = Candidates::read(change)?;
    turns::abandon(change, orphans, &candidates, command.max_attempts)?;
    leases::place(change)?;
    Ok(outcome::Kind::Done(Done {}))
}

pub(super) fn set_draining<T: Tables + ?Sized>(change: &mut Change<'_, T>, command: &SetDraining) -> Answer {
    let instance_id = InstanceId::parse(command.instance_id.as_str())?;
    match change.instance(instance_id.as_str())? {
        Some(mut row) if row.live && row.epoch == command.epoch => {
            let drains = |other: &Instance| other.live && other.draining && other.instance_id != row.instance_id;
            if command.alone
                && command.draining
                && let Some(other) = read::instances(change.tables())?.into_iter().find(drains)
            {
                return Ok(outcome::Kind::Conflict(Conflict { expected: row.epoch, actual: other.epoch }));
            }
            row.draining = command.draining;
            change.put_instance(&row);
            Ok(outcome::Kind::Done(Done {}))
        }
        Some(_) | None => Ok(outcome::Kind::Stale(Stale {})),
    }
}

/// Drops a row that is not live. One that is gone already is as forgotten as the caller wants it.
pub(super) fn forget<T: Tables + ?Sized>(change: &mut Change<'_, T>, command: &ForgetInstance) -> Answer {
    let instance_id = InstanceId::parse(command.instance_id.as_str())?;
    match change.instance(instance_id.as_str())? {
        Some(row) if row.live => return Ok(outcome::Kind::Stale(Stale {})),
        Some(row) => {
            change.delete(Table::Instances, row.instance_id.into_bytes());
            // It may have been the last that did not read the newest format.
            format::raise(change)?;
        }
        None => {}
    }
    Ok(outcome::Kind::Done(Done {}))
}

/// Who should run a turn that becomes runnable, if not the instance that it names.
///
/// The named one while it is live and takes turns; else one that does; else the named one if it is live at all.
pub(super) fn runner_for<T: Tables + ?Sized>(
    change: &Change<'_, T>,
    turn: &Turn,
) -> Result<Option<String>, TableError> {
    let named = change.instance(&turn.runner)?.filter(|row| row.live);
    if named.as_ref().is_some_and(|row| !row.draining) {
        return Ok(None);
    }
    let candidates = Candidates::read(change)?;
    if named.is_some() && candidates.draining {
        return Ok(None);
    }
    Ok(candidates.choose(&turn.session_key))
}

/// The instances that may be given a turn.
pub(super) struct Candidates {
    ids: Vec<String>,
    /// All that are live are draining.
    draining: bool,
}

impl Candidates {
    pub(super) fn read<T: Tables + ?Sized>(change: &Change<'_, T>) -> Result<Self, TableError> {
        let live: Vec<_> = read::instances(change.tables())?.into_iter().filter(|row| row.live).collect();
        let draining = live.iter().all(|row| row.draining);
        let taking = live.into_iter().filter(|row| draining || !row.draining);
        Ok(Self { ids: taking.map(|row| row.instance_id).collect(), draining })
    }

    pub(super) fn choose(&self, session_key: &str) -> Option<String> {
        rendezvous(session_key, self.ids.iter().map(String::as_str)).map(str::to_owned)
    }
}
