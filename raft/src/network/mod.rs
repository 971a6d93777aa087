//! How instances reach each other.

pub mod security;
