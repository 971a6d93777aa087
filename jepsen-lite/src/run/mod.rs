//! One run: workloads on a cluster, faults meanwhile, checks afterwards, and a folder with all that was seen.

pub mod plan;
pub mod verdict;
