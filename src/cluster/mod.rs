//! This instance as a member: that it lives, whether it takes work, and who else does.
//!
//! [`session`] keeps this instance's row in the replicated state alive; [`expiry`], where the leader is, ends the rows of
//! instances that fell silent, which hands their turns and channels to others; [`validity`] is how long this one may act as an
//! owner; [`placement`], where the leader is, sends channels to who should run them; [`readiness`] is what this instance says
//! of itself; [`observer`] is what it has done and seen, for those who watch: events by [`history`], work by [`rates`].
//! Nothing here knows sessions or HTTP. Commands go to the node, state comes from it.

pub mod expiry;
pub mod history;
pub mod observer;
pub mod placement;
pub mod rates;
pub mod readiness;
pub mod session;
pub mod validity;

use openclaw_proto::ids::{InstanceId, SessionKey};
use openclaw_proto::state::Instance;
use openclaw_raft::state_machine::rendezvous;

/// Who should run a new turn of `session` that this instance will not run: a live instance that takes work.
pub fn other_runner(instances: &[Instance], me: &InstanceId, session: &SessionKey) -> Option<InstanceId> {
    let others = instances.iter().filter(|instance| instance.live && !instance.draining);
    let others = others.map(|instance| instance.instance_id.as_str()).filter(|id| *id != me.as_str());
    rendezvous(session.as_str(), others).and_then(|id| InstanceId::parse(id).ok())
}

/// Whether an instance other than `me` would run the account: it can, and takes work.
pub fn another_takes(instances: &[Instance], me: &str, account: &str) -> bool {
    let takes = |row: &Instance| row.live && !row.draining && row.instance_id != me;
    instances.iter().any(|row| takes(row) && row.accounts.iter().any(|one| one == account))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_goes_to_a_live_instance_that_takes_it() {
        let instance =
            |id: &str, live, draining| Instance { instance_id: id.into(), live, draining, ..Instance::default() };
        let rows = [
            instance("a", true, false),
            instance("b", true, true),
            instance("c", false, false),
            instance("d", true, false),
        ];
        let me = InstanceId::parse("a").unwrap();
        let session = SessionKey::parse("agent:main:main").unwrap();
        assert_eq!(other_runner(&rows, &me, &session).unwrap().as_str(), "d");
        assert_eq!(other_runner(&rows[..3], &me, &session), None);
    }
}
