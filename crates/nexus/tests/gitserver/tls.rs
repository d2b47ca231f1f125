//! TLS of the git server, with a certificate for 127.0.0.1 by an authority that no machine knows. Both were made by the
//! openssl program for a hundred years; the authority's own key was thrown away.

use super::Wire;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;

/// The file with the authority's certificate.
pub const AUTHORITY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/gitserver/tls/authority.pem");

impl Wire for StreamOwned<ServerConnection, TcpStream> {
    fn finish(&mut self) {
        self.conn.send_close_notify();
        self.flush().unwrap_or_default(); // a client that has seen enough hangs up
    }
}

pub(super) fn config() -> Arc<ServerConfig> {
    let certificate = CertificateDer::from_pem_slice(include_bytes!("tls/certificate.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("tls/key.pem")).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    Arc::new(versions.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap())
}

/// The handshake comes with the first byte that is read.
pub(super) fn accept(config: &Arc<ServerConfig>, socket: TcpStream) -> Option<Box<dyn Wire>> {
    let connection = ServerConnection::new(config.clone()).ok()?;
    Some(Box::new(StreamOwned::new(connection, socket)))
}
