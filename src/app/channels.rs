//! The channel accounts of the configuration, as what runs them.

use openclaw_config::Channels;

use super::Stopped;
use crate::channels::supervisor::Configured;

/// Every account that the configuration has.
pub(super) fn configured(channels: &Channels) -> Result<Vec<Configured>, Stopped> {
    let _ = channels;
    Ok(Vec::new())
}
