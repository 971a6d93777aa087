//! What there is to run: faults, with what each does.

use anyhow::Result;
use serde_json::json;

use super::Report;
use crate::nemesis::Kind;

/// Lists it.
///
/// # Errors
/// None in practice: the list is made of texts.
pub fn run() -> Result<Report> {
    let width = Kind::ALL.iter().map(|kind| kind.name().len()).max().unwrap_or_default();
    let lines: Vec<String> =
        Kind::ALL.iter().map(|kind| format!("  {:width$}  {}", kind.name(), kind.about())).collect();
    let text = format!("faults (--nemesis):\n{}", lines.join("\n"));
    let faults: Vec<_> = Kind::ALL.iter().map(|kind| json!({"name": kind.name(), "about": kind.about()})).collect();
    Report::new(text, json!({"faults": faults}), true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_listed_with_what_it_does() {
        let report = run().unwrap();
        for kind in Kind::ALL {
            assert!(report.text.contains(&kind.name()) && !kind.about().is_empty(), "{kind:?}");
        }
    }
}
