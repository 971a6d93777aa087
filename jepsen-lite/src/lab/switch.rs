//! An Ethernet switch in user space: a TAP device for each port, and a [`Line`] for each ordered pair of them.
//!
//! A kernel may have no netem, and a switch of our own draws from a seed. The devices end with it. It runs in a thread of its
//! own, so that a harness that is busy does not slow the network down. Frames go from host to host only; what is meant for
//! all of them (nobody needs it, see `ports`) is lost.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result};
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tun_rs::{AsyncDevice, DeviceBuilder, Layer};

use super::line::{Counts, Line, Passage};
use super::ports::Port;
use super::shape::Shape;

/// Longer than any frame of an interface of 1500 bytes.
const FRAME_BYTES: usize = 2048;

#[derive(Debug)]
pub(super) struct Switch {
    lines: Arc<Lines>,
    /// Dropped, it ends the thread.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// `[from][to]`
#[derive(Debug)]
struct Lines(Vec<Vec<Mutex<Line>>>);

impl Lines {
    fn line(&self, from: usize, to: usize) -> MutexGuard<'_, Line> {
        self.0[from][to].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Switch {
    /// Makes the devices, in the namespace of the caller, and begins to move frames between them.
    ///
    /// # Errors
    /// When a device cannot be made.
    pub(super) fn start(ports: &[Port], seed: u64) -> Result<Self> {
        let count = ports.len();
        let line = |from: usize, to: usize| {
            Mutex::new(Line::new(Shape::default(), seed.wrapping_mul(10_007).wrapping_add((from * count + to) as u64)))
        };
        let lines = Arc::new(Lines((0..count).map(|from| (0..count).map(|to| line(from, to)).collect()).collect()));
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (own, devices) = (Arc::clone(&lines), ports.to_vec());
        let thread = std::thread::Builder::new()
            .name("switch".to_owned())
            .spawn(move || {
                let started = (|| -> Result<_> {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                    let entered = runtime.enter();
                    let devices = devices.iter().map(device).collect::<Result<Vec<_>>>()?;
                    drop(entered);
                    Ok((runtime, devices))
                })();
                let outcome = match started {
                    Ok((runtime, taps)) => {
                        let sent = ready.send(Ok(()));
                        runtime.block_on(serve(&devices, taps, &own, stopped));
                        sent
                    }
                    Err(error) => ready.send(Err(error)),
                };
                // Nobody waits any more when the one who started it is gone, and then `stopped` is, too.
                drop(outcome);
            })
            .context("start the thread of the switch")?;
        is_ready.recv().context("the switch ended at once")?.context("start the switch")?;
        Ok(Self { lines, stop: Some(stop), thread: Some(thread) })
    }

    pub(super) fn set_shape(&self, from: usize, to: usize, shape: Shape) {
        self.lines.line(from, to).set_shape(shape);
    }

    pub(super) fn shape(&self, from: usize, to: usize) -> Shape {
        self.lines.line(from, to).shape()
    }

    pub(super) fn counts(&self, from: usize, to: usize) -> Counts {
        self.lines.line(from, to).counts()
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        drop(self.stop.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            eprintln!("the switch panicked");
        }
    }
}

fn device(port: &Port) -> Result<AsyncDevice> {
    let builder = DeviceBuilder::new().name(&port.device).layer(Layer::L2).enable(false);
    builder.build_async().with_context(|| format!("make the TAP device {}", port.device))
}

async fn serve(ports: &[Port], devices: Vec<AsyncDevice>, lines: &Arc<Lines>, stopped: oneshot::Receiver<()>) {
    let devices: Arc<[AsyncDevice]> = devices.into();
    let hardware: Arc<[[u8; 6]]> = ports.iter().map(|port| port.hardware).collect();
    let mut tasks = tokio::task::JoinSet::new();
    let mut queues = Vec::new();
    for to in 0..devices.len() {
        // Bounded by the lines, which let so many frames wait and no more.
        let (queue, waiting) = mpsc::unbounded_channel();
        queues.push(queue);
        tasks.spawn(deliver(Arc::clone(&devices), to, waiting));
    }
    for from in 0..devices.len() {
        let (devices, hardware, lines) = (Arc::clone(&devices), Arc::clone(&hardware), Arc::clone(lines));
        tasks.spawn(accept(devices, from, hardware, lines, queues.clone()));
    }
    // An error is the end of the switch's owner, which is the same.
    drop(stopped.await);
}

/// Takes what one port sends.
async fn accept(
    devices: Arc<[AsyncDevice]>,
    from: usize,
    hardware: Arc<[[u8; 6]]>,
    lines: Arc<Lines>,
    queues: Vec<mpsc::UnboundedSender<Frame>>,
) {
    let mut buffer = vec![0; FRAME_BYTES];
    loop {
        // A device is down until its port is connected, and says so.
        let Ok(length) = devices[from].recv(&mut buffer).await else {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            continue;
        };
        let frame = &buffer[..length];
        let Some(to) = hardware.iter().position(|hardware| frame.starts_with(hardware)) else { continue };
        let now = Instant::now();
        let passage = lines.line(from, to).pass(now, length);
        let arrivals = match passage {
            Passage::Lost | Passage::Full => [None, None],
            Passage::Once(at) => [Some(at), None],
            Passage::Twice(at, again) => [Some(at), Some(again)],
        };
        for at in arrivals.into_iter().flatten() {
            if at <= now {
                send(&devices[to], frame).await;
            } else if queues[to].send(Frame { at, bytes: Bytes::copy_from_slice(frame) }).is_err() {
                return;
            }
        }
    }
}

/// A frame under way.
#[derive(Debug, PartialEq, Eq)]
struct Frame {
    at: Instant,
    bytes: Bytes,
}

/// Hands one port what arrives there, when it does.
async fn deliver(devices: Arc<[AsyncDevice]>, to: usize, mut queue: mpsc::UnboundedReceiver<Frame>) {
    let (mut waiting, mut arrived) = (BinaryHeap::new(), 0_u64);
    loop {
        let next = waiting.peek().map(|Waiting { frame, .. }: &Waiting| frame.at);
        let due = async {
            match next {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            frame = queue.recv() => match frame {
                Some(frame) => {
                    arrived += 1;
                    waiting.push(Waiting { frame, number: arrived });
                }
                None => return,
            },
            () = due => if let Some(Waiting { frame, .. }) = waiting.pop() {
                send(&devices[to], &frame.bytes).await;
            }
        }
    }
}

/// Ordered so that the heap gives the earliest first, and of those that arrive together the one that was sent first.
#[derive(Debug, PartialEq, Eq)]
struct Waiting {
    frame: Frame,
    number: u64,
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.frame.at, other.number).cmp(&(self.frame.at, self.number))
    }
}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

async fn send(device: &AsyncDevice, frame: &[u8]) {
    // A port whose device is down, or gone with its namespace, loses what is sent to it.
    drop(device.send(frame).await);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_earliest_frame_is_delivered_first_and_of_equals_the_first_sent() {
        let now = Instant::now();
        let frame =
            |ms, number| Waiting { frame: Frame { at: now + Duration::from_millis(ms), bytes: Bytes::new() }, number };
        let mut heap = BinaryHeap::from([frame(5, 1), frame(2, 2), frame(5, 3), frame(2, 4)]);
        let order: Vec<u64> = std::iter::from_fn(|| heap.pop()).map(|waiting| waiting.number).collect();
        assert_eq!(order, [2, 4, 1, 3]);
    }
}
