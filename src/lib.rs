pub mod cli;
pub mod logging;
pub mod metrics;
pub mod sessions;
pub mod store;
