pub mod agent;
pub mod api;
pub mod cli;
pub mod logging;
pub mod metrics;
pub mod models;
pub mod sessions;
pub mod store;
