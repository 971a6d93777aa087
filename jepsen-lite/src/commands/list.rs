//! What there is to run: workloads and faults, with what each does.

use anyhow::Result;
use clap::ValueEnum;
use serde_json::{Value, json};

use super::Report;
use crate::names::{about, name};
use crate::nemesis::Kind;
use crate::workloads::Workload;

/// Lists it.
///
/// # Errors
/// None in practice: the list is made of texts.
pub fn run() -> Result<Report> {
    let text =
        format!("workloads (--workload):\n{}\nfaults (--nemesis):\n{}", lines(&Workload::ALL), lines(&Kind::ALL));
    Report::new(text, json!({"workloads": values(&Workload::ALL), "faults": values(&Kind::ALL)}), true)
}

fn lines<T: ValueEnum>(all: &[T]) -> String {
    let width = all.iter().map(|one| name(one).len()).max().unwrap_or_default();
    let lines: Vec<String> = all.iter().map(|one| format!("  {:width$}  {}", name(one), about(one))).collect();
    lines.join("\n")
}

fn values<T: ValueEnum>(all: &[T]) -> Vec<Value> {
    all.iter().map(|one| json!({"name": name(one), "about": about(one)})).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_workload_and_fault_is_listed_with_what_it_does() {
        let report = run().unwrap();
        let names = Kind::ALL.iter().map(|kind| (name(kind), about(kind)));
        for (name, about) in names.chain(Workload::ALL.iter().map(|one| (name(one), about(one)))) {
            assert!(report.text.contains(&name) && !about.is_empty(), "{name}");
        }
    }
}
