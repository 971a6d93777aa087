//! Bytes of unknown length inside a longer stream: blocks with their length before them, and an empty one at the end.

use std::io::{self, Read, Write};

const BLOCK: usize = 64 * 1024;
/// What a reader believes of a length.
const MAX_BLOCK: usize = 1024 * 1024;

/// Writes blocks.
pub(super) struct BlockWriter<W> {
    to: W,
    block: Vec<u8>,
}

impl<W: Write> BlockWriter<W> {
    pub(super) fn new(to: W) -> Self {
        Self { to, block: Vec::with_capacity(BLOCK) }
    }

    fn send(&mut self) -> io::Result<()> {
        self.to.write_all(&u32::try_from(self.block.len()).unwrap_or(u32::MAX).to_be_bytes())?;
        self.to.write_all(&self.block)?;
        self.block.clear();
        Ok(())
    }

    /// Writes what waits, and the end.
    pub(super) fn finish(mut self) -> io::Result<W> {
        if !self.block.is_empty() {
            self.send()?;
        }
        self.send()?;
        Ok(self.to)
    }
}

impl<W: Write> Write for BlockWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(BLOCK - self.block.len());
        self.block.extend_from_slice(&bytes[..taken]);
        if self.block.len() == BLOCK {
            self.send()?;
        }
        Ok(taken)
    }

    /// A block that is not full waits for [`Self::finish`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads blocks up to their end.
pub(super) struct BlockReader<R> {
    from: R,
    left: usize,
    ended: bool,
}

impl<R: Read> BlockReader<R> {
    pub(super) fn new(from: R) -> Self {
        Self { from, left: 0, ended: false }
    }

    /// Whether the end was read, and not only looked for.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Where the blocks are read from.
    pub(super) fn inner(&mut self) -> &mut R {
        &mut self.from
    }
}

impl<R: Read> Read for BlockReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || self.ended {
            return Ok(0);
        }
        if self.left == 0 {
            let mut length = [0; 4];
            self.from.read_exact(&mut length)?;
            self.left = u32::from_be_bytes(length) as usize;
            if self.left == 0 {
                self.ended = true;
                return Ok(0);
            }
            if self.left > MAX_BLOCK {
                let message = format!("one says that it has {} bytes; at most {MAX_BLOCK} are allowed", self.left);
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
        }
        let most = buffer.len().min(self.left);
        let read = self.from.read(&mut buffer[..most])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read;
        Ok(read)
    }
}
