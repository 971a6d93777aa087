//! Files, environment and flags in; settings or messages out.

mod channels;
mod examples;
mod merged;
mod refused;
mod written;
