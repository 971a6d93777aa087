//! Which process opened a connection, as the kernel tells: the client's port in /proc/net/tcp gives the socket's inode, and the
//! inode is found among the open files of processes. It sees connections within one network namespace, that of the harness.

use std::net::SocketAddr;
use std::path::Path;

/// Which of `pids` holds the connection from `source` to `local`, as long as it is open.
pub fn process_of(source: SocketAddr, local: SocketAddr, pids: impl IntoIterator<Item = u32>) -> Option<u32> {
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let inode = socket_inode(&table, source, local)?;
    let link = format!("socket:[{inode}]");
    pids.into_iter().find(|pid| has_open(*pid, Path::new(&link)))
}

fn has_open(pid: u32, link: &Path) -> bool {
    let Ok(files) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    files.flatten().any(|file| std::fs::read_link(file.path()).is_ok_and(|target| target == link))
}

/// The inode of the socket bound to `local` and connected to `remote`, from the text of /proc/net/tcp.
fn socket_inode(table: &str, local: SocketAddr, remote: SocketAddr) -> Option<&str> {
    let (local, remote) = (kernel_address(local)?, kernel_address(remote)?);
    table.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        (fields.next()? == local && fields.next()? == remote).then(|| fields.nth(6)).flatten()
    })
}

/// As the kernel prints it: the address as a little-endian number, the port as it is.
fn kernel_address(address: SocketAddr) -> Option<String> {
    match address {
        SocketAddr::V4(v4) => Some(format!("{:08X}:{:04X}", u32::from_le_bytes(v4.ip().octets()), v4.port())),
        SocketAddr::V6(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_table_names_the_socket() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
             0: 0100007F:0BB8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1 0\n   \
             1: 0100007F:9C40 0100007F:0BB8 01 00000000:00000000 00:00000000 00000000     0        0 222 1 0\n";
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert_eq!(socket_inode(table, address("127.0.0.1:40000"), address("127.0.0.1:3000")), Some("222"));
        assert_eq!(socket_inode(table, address("127.0.0.1:3000"), address("127.0.0.1:40000")), None);
        assert_eq!(socket_inode(table, address("[::1]:40000"), address("127.0.0.1:3000")), None);
    }
}
