//! Does what an earlier run did: the same plan, from its folder, on a cluster of its own.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::{Common, Report, quoted, rerun, run};
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
    let mut plan: Plan =
        serde_json::from_str(&text).with_context(|| format!("{} is not the plan of a run", file.display()))?;
    ensure!(
        plan.environment != NAMESPACES || options.common.needs_namespaces(),
        "{} was made for namespaces: add --environment {NAMESPACES}",
        file.display()
    );
    // Given anew, it takes the place of the one in the plan.
    if let (_, Some(shape)) = options.common.place()? {
        ensure!(
            plan.environment == NAMESPACES,
            "--shape: {} was made for loopback, where links have none",
            file.display()
        );
        plan.shape = Some(shape);
    }
    let openclaw = options.common.openclaw()?;
    let place = Place { openclaw: openclaw.clone(), directory: options.common.directory()? };
    let file = std::path::absolute(&file).with_context(|| format!("find {}", file.display()))?;
    let again = rerun("replay", &openclaw, &options.common, &quoted(&file));
    run::report(&runs::execute(&plan, &place, again).await?)
}
