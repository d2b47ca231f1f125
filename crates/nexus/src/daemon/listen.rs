//! Opens the daemon's two listeners and says who may use them.

use super::error::StartError;
use super::paths::Paths;
use crate::http::Guard;
use nexus_core::config::Config;
use secrecy::SecretString;
use std::sync::Arc;
use tokio::net::{TcpListener, UnixListener};

/// The read-only port.
pub(super) async fn tcp(config: &Config) -> Result<TcpListener, StartError> {
    let address = format!("{}:{}", config.daemon.host, config.daemon.port);
    TcpListener::bind(&address).await.map_err(|source| StartError::Listen { address, source })
}

/// Who may use it.
pub(super) fn guard(config: &Config, paths: &Paths) -> Result<Guard, StartError> {
    let token = match &config.daemon.token_file {
        Some(file) => {
            let path = paths.workspace.join(file);
            let text =
                std::fs::read_to_string(&path).map_err(|source| StartError::File { operation: "read", path: path.clone(), source })?;
            let token = text.trim().to_owned();
            if token.len() < 16 {
                return Err(StartError::Setting(format!("the token in `{}` is shorter than 16 characters", path.display())));
            }
            Some(Arc::new(SecretString::from(token)))
        }
        None => None,
    };
    Ok(Guard { host: config.daemon.host.clone(), token })
}

/// The control socket.
pub(super) fn unix(paths: &Paths) -> Result<UnixListener, StartError> {
    use std::os::unix::fs::PermissionsExt;
    let path = paths.socket();
    let failed = |operation| {
        let path = path.clone();
        move |source| StartError::File { operation, path, source }
    };
    // The lock is ours, so a socket that lies there is a dead daemon's.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed("remove")(error)),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&path).map_err(failed("listen on"))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(failed("protect"))?;
    Ok(listener)
}
