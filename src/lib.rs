pub mod metrics;
pub mod sessions;
pub mod models;
pub mod store;
