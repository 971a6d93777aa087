pub mod agent;
pub mod metrics;
pub mod models;
pub mod sessions;
pub mod store;
