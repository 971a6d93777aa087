//! Does what an earlier run did: the same plan, from its folder, on a cluster of its own.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::{Common, Report, rerun, run};
use crate::run::plan::{NAMESPACES, Plan};
use crate::run::{self as runs, Place};

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub common: Common,
    /// The folder of a run, or its plan.json
    #[arg(value_name = "DIR")]
    from: PathBuf,
}

/// Runs it.
///
/// # Errors
/// When there is no plan, or the harness itself fails.
pub async fn run(options: Options) -> Result<Report> {
    let file = if options.from.is_dir() { options.from.join("plan.json") } else { options.from.clone() };
    let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    let plan: Plan =
        serde_json::from_str(&text).with_context(|| format!("{} is not the plan of a run", file.display()))?;
    ensure!(
        plan.environment != NAMESPACES || options.common.needs_namespaces(),
        "{} was made for namespaces: add --environment {NAMESPACES}",
        file.display()
    );
    let openclaw = options.common.openclaw()?;
    let place = Place { openclaw: openclaw.clone(), directory: options.common.directory()? };
    let again = rerun("replay", &openclaw, &options.common, &file.display().to_string());
    run::report(&runs::execute(&plan, &place, again).await?)
}
