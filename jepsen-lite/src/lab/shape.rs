//! What a link does to frames, as a value that can be written: `delay=20ms,jitter=5ms,loss=0.01,rate=1000000`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// What one direction of a link does to frames. The default does nothing.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Shape {
    /// Every frame takes so much longer...
    pub delay: Duration,
    /// ... give or take up to so much. It does not change their order.
    pub jitter: Duration,
    /// Share of frames that are lost, 0 to 1.
    pub loss: f64,
    /// Share of frames that arrive twice, 0 to 1.
    pub duplicate: f64,
    /// Share of frames that are held back so that later ones arrive before them, 0 to 1.
    pub reorder: f64,
    /// Bytes per second; absent: no limit.
    pub rate: Option<u64>,
}

impl Shape {
    /// One that only takes time.
    pub fn delay(delay: Duration) -> Self {
        Self { delay, ..Self::default() }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        for (name, time) in [("delay", self.delay), ("jitter", self.jitter)] {
            if !time.is_zero() {
                parts.push(format!("{name}={}ms", time.as_secs_f64() * 1000.0));
            }
        }
        for (name, share) in [("loss", self.loss), ("duplicate", self.duplicate), ("reorder", self.reorder)] {
            if share > 0.0 {
                parts.push(format!("{name}={share}"));
            }
        }
        parts.extend(self.rate.map(|rate| format!("rate={rate}")));
        f.write_str(&parts.join(","))
    }
}

impl FromStr for Shape {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut shape = Self::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').with_context(|| format!("{part:?} is not <name>=<value>"))?;
            match name {
                "delay" => shape.delay = time(value)?,
                "jitter" => shape.jitter = time(value)?,
                "loss" => shape.loss = share(value)?,
                "duplicate" => shape.duplicate = share(value)?,
                "reorder" => shape.reorder = share(value)?,
                "rate" => {
                    let rate = value.parse().with_context(|| format!("{value:?} is not a number of bytes"))?;
                    ensure!(rate > 0, "a rate of 0 is a cut");
                    shape.rate = Some(rate);
                }
                _ => bail!("{name:?} is none of delay, jitter, loss, duplicate, reorder, rate"),
            }
        }
        Ok(shape)
    }
}

fn time(text: &str) -> Result<Duration> {
    let wrong = || format!("{text:?} is not a number of milliseconds such as 20ms");
    let ms: f64 = text.strip_suffix("ms").with_context(wrong)?.parse().with_context(wrong)?;
    Duration::try_from_secs_f64(ms / 1000.0).with_context(wrong)
}

fn share(text: &str) -> Result<f64> {
    let share: f64 = text.parse().with_context(|| format!("{text:?} is not a number"))?;
    ensure!((0.0..=1.0).contains(&share), "{text} is not between 0 and 1");
    Ok(share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_reads_back_as_written() {
        for text in ["", "delay=20ms,jitter=2.5ms,loss=0.01,duplicate=0.02,reorder=1,rate=1000000"] {
            assert_eq!(text.parse::<Shape>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_wrong_with_a_shape_is_said() {
        for (text, why) in [
            ("loss", "<name>=<value>"),
            ("loss=2", "between 0 and 1"),
            ("delay=20", "20ms"),
            ("delay=-1ms", "20ms"),
            ("rate=0", "a cut"),
            ("colour=red", "none of"),
        ] {
            let error = text.parse::<Shape>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
