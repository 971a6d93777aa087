//! What workloads need before instances start, and the workloads once they play.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use openclaw_config::session::DmScope;
use serde_json::{Map, Value, json};

use super::RECOVERY;
use super::plan::Plan;
use crate::checkers::Check;
use crate::checkers::availability::Bounds;
use crate::checkers::single_owner::Stop;
use crate::client::Client;
use crate::cluster::{self, Instance, Names};
use crate::workloads::channels::{self, Discord, Platform, Telegram};
use crate::workloads::probe::{self, Broken};
use crate::workloads::{Judged, Shared, Workload, append, register, turns};

/// How soon a write to an instance that is up is answered. The first is its own deadline and something for a busy machine.
const BOUNDS: Bounds =
    Bounds { at_most: Duration::from_secs(7), notices: Duration::from_secs(2), then: Duration::from_secs(3) };
/// How soon a bot has an owner that listens, once everything is healed: the old lease may have to run out first.
const UNOWNED: Duration = Duration::from_secs(15);
/// Between two messages to a bot.
const SAY_EVERY: Duration = Duration::from_millis(250);
/// How long one attempt to append waits for its answer, in milliseconds, drawn for each client.
const ATTEMPT_MS: std::ops::Range<u64> = 200..400;
/// Clients that share a register, and the calls after which they take another: what a search for an order can bear.
const SHARING: u32 = 3;
const CALLS: u32 = 40;

/// The world outside: chat platforms that are served before instances ask for them.
pub(super) struct Stage {
    workloads: Vec<Workload>,
    telegram: Option<Arc<Telegram>>,
    discord: Option<Arc<Discord>>,
}

impl Stage {
    pub(super) async fn set(workloads: &[Workload], names: &Names) -> Result<Self> {
        let mut stage = Self { workloads: workloads.to_vec(), telegram: None, discord: None };
        for workload in workloads {
            match workload {
                Workload::Telegram => stage.telegram = Some(Arc::new(Telegram::start(names).await?)),
                Workload::Discord => stage.discord = Some(Arc::new(Discord::start(names).await?)),
                Workload::Append | Workload::Register | Workload::Turns => {}
            }
        }
        Ok(stage)
    }

    pub(super) fn has_accounts(&self) -> bool {
        self.telegram.is_some() || self.discord.is_some()
    }

    /// Tells the instances of it.
    pub(super) fn settings(&self, options: cluster::Options) -> cluster::Options {
        let of = |settings: Option<Value>| settings.and_then(|settings| settings.as_object().cloned());
        let mut channels = Map::new();
        channels.extend(of(self.telegram.as_ref().map(|platform| platform.settings())).unwrap_or_default());
        channels.extend(of(self.discord.as_ref().map(|platform| platform.settings())).unwrap_or_default());
        if channels.is_empty() {
            return options;
        }
        options.settings(|settings| settings.session.dm_scope = DmScope::PerPeer).written("channels", json!(channels))
    }

    /// Starts the clients.
    pub(super) async fn enter(
        &self,
        plan: &Plan,
        instances: &[Instance],
        clients: &[Client],
        broken: &Broken,
        shared: &Shared,
    ) -> Result<Cast> {
        let (run, seed) = (format!("run-{}", plan.schedule.seed), plan.schedule.seed);
        let pause = Duration::from_millis(plan.pause_ms);
        let mut cast = Cast { append: None, register: None, turns: None, telegram: None, discord: None, probes: None };
        if let Some(platform) = &self.telegram {
            let load = channels::Load::start(platform.clone(), SAY_EVERY, clients, shared).await?;
            cast.telegram = Some(load);
        }
        if let Some(platform) = &self.discord {
            let load = channels::Load::start(platform.clone(), SAY_EVERY, clients, shared).await?;
            cast.discord = Some(load);
        }
        for workload in &self.workloads {
            match workload {
                Workload::Append => {
                    let options = append::Options {
                        run: run.clone(),
                        clients: plan.clients,
                        sessions: (plan.clients / 2).max(1),
                        appends: None,
                        attempt_ms: ATTEMPT_MS,
                        give_up: RECOVERY,
                        pause,
                        repeat_one_in: 20,
                        read_one_in: 3,
                        seed,
                    };
                    cast.append = Some(append::Load::start_among(options, clients, shared)?);
                }
                Workload::Register => {
                    let options = register::Options {
                        run: run.clone(),
                        clients: plan.clients,
                        sharing: SHARING,
                        calls: CALLS,
                        changes: None,
                        attempt_ms: ATTEMPT_MS,
                        give_up: RECOVERY,
                        pause,
                        seed,
                    };
                    cast.register = Some(register::Load::start_among(options, clients, shared)?);
                }
                Workload::Turns => {
                    let options =
                        turns::Options { run: run.clone(), clients: plan.clients, give_up: 2 * RECOVERY, pause, seed };
                    cast.turns = Some(turns::Load::start(options, clients, shared)?);
                }
                Workload::Telegram | Workload::Discord => {}
            }
        }
        let alone = self.workloads.iter().all(|workload| !workload.writes());
        cast.probes = Some(probe::Load::start(&run, instances, clients, broken, alone, shared)?);
        Ok(cast)
    }
}

/// The workloads of a run, playing.
pub(super) struct Cast {
    append: Option<append::Load>,
    register: Option<register::Load>,
    turns: Option<turns::Load>,
    telegram: Option<channels::Load<Telegram>>,
    discord: Option<channels::Load<Discord>>,
    probes: Option<probe::Load>,
}

impl Cast {
    /// What they found; everything was healed at the moments in `healed`. Each is judged, whatever became of the others. If the
    /// cluster has not `settled`, only by what needs no answer of it any more.
    pub(super) async fn judge(self, instances: &[Instance], healed: &[Instant], settled: bool) -> Said {
        let mut said = Said::default();
        let stops = stops(instances);
        let names: Vec<String> = instances.iter().map(|instance| instance.id.to_string()).collect();
        let one = |check: Result<Check>| check.map(|check| vec![check]);
        let all = |judged: Result<Judged>| judged.map(|judged| judged.checks);
        if let Some(load) = self.append {
            let check = if settled { load.judge_all().await } else { load.judge_history().await };
            said.take("append", one(check));
        }
        if let Some(load) = self.register {
            let check = if settled { load.judge().await } else { load.judge_history().await };
            said.take("register", one(check));
        }
        if let Some(load) = self.turns {
            let checks = if settled { all(load.judge().await) } else { one(load.judge_history().await) };
            said.take("turns", checks);
        }
        if let Some(load) = self.telegram {
            said.take("telegram", all(load.judge(&names, &stops, healed, UNOWNED, settled).await));
        }
        if let Some(load) = self.discord {
            said.take("discord", all(load.judge(&names, &stops, healed, UNOWNED, settled).await));
        }
        if let Some(load) = self.probes {
            said.take("probes", all(load.judge(BOUNDS).await));
        }
        said
    }
}

/// What the checkers of all workloads said.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) checks: Vec<Check>,
    /// Which could not be judged, and why: the harness itself failed there.
    pub(super) unjudged: Vec<String>,
}

impl Said {
    fn take(&mut self, of: &str, checks: Result<Vec<Check>>) {
        match checks {
            Ok(checks) => self.checks.extend(checks),
            Err(error) => self.unjudged.push(format!("{of} was not judged: {error:#}")),
        }
    }
}

/// When processes were stopped.
fn stops(instances: &[Instance]) -> Vec<Stop> {
    let of = |instance: &Instance| {
        let who = instance.id.to_string();
        instance.process.lifeline().pauses().into_iter().map(move |from| Stop { who: who.clone(), from })
    };
    instances.iter().flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_judged_is_told_and_takes_nothing_else_with_it() {
        let mut said = Said::default();
        let check = Check { checker: "any".into(), decided: true, figures: Value::Null, found: Vec::new() };
        said.take("append", Err(anyhow::anyhow!("a client panicked")));
        said.take("turns", Ok(vec![check]));
        assert_eq!(said.unjudged, ["append was not judged: a client panicked"]);
        assert_eq!(said.checks.len(), 1);
    }
}
