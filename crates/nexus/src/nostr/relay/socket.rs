//! The WebSocket of one relay: connecting, with TLS for `wss`, reading and writing within limits of time and size.
//! It knows nothing of what is said.

use crate::error_text::describe;
use futures_util::{SinkExt, StreamExt};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, client_async_tls_with_config};

/// How long a connection may take to stand, with TLS and the handshake.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);
/// How long the relay may leave what we write unread.
const WRITE_LIMIT: Duration = Duration::from_secs(20);
/// How long a good-bye may take.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);
/// Longest message that is received at all: one that is longer than the configuration wants, but not than this,
/// costs only itself, not the connection.
const MESSAGE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Buffers of one connection.
const READ_BUFFER_BYTES: usize = 16 * 1024;
const WRITE_BUFFER_BYTES_MAX: usize = 4 * 1024 * 1024;

pub(super) type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// What came out of a connection.
#[derive(Debug)]
pub(super) enum Heard {
    Text(Utf8Bytes),
    /// Something that isn't for us: pings, which are answered, and bytes.
    Nothing,
    End(String),
}

/// Connects.
///
/// # Errors
/// Why not, in words.
pub(super) async fn connect(url: &str, frame_bytes_max: usize) -> Result<Socket, String> {
    let request = url.into_client_request().map_err(|error| describe(&error))?;
    let host = request.uri().host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
    let is_tls = request.uri().scheme_str() == Some("wss");
    let port = request.uri().port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_write_buffer_size(WRITE_BUFFER_BYTES_MAX)
        .max_message_size(Some(MESSAGE_BYTES_MAX.max(frame_bytes_max)))
        .max_frame_size(Some(MESSAGE_BYTES_MAX.max(frame_bytes_max)));
    let connecting = async {
        let stream = TcpStream::connect((host.as_str(), port)).await.map_err(|error| describe(&error))?;
        stream.set_nodelay(true).map_err(|error| describe(&error))?;
        let connected = client_async_tls_with_config(request, stream, Some(config), None).await;
        connected.map(|(socket, _)| socket).map_err(|error| describe(&error))
    };
    let late = |_| format!("no connection within {} s", CONNECT_LIMIT.as_secs());
    timeout(CONNECT_LIMIT, connecting).await.map_err(late)?
}

/// The next message; never, without a connection. Safe to cancel.
pub(super) async fn hear(socket: &mut Option<Socket>) -> Heard {
    let Some(socket) = socket else { return std::future::pending().await };
    match socket.next().await {
        Some(Ok(Message::Text(text))) => Heard::Text(text),
        Some(Ok(Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => Heard::Nothing,
        Some(Ok(Message::Close(_))) | None => Heard::End("the relay closed the connection".to_owned()),
        Some(Err(error)) => Heard::End(describe(&error)),
    }
}

/// Writes a message, to the last byte.
///
/// # Errors
/// Why not, in words; the connection is of no use then.
pub(super) async fn send(socket: &mut Socket, text: String) -> Result<(), String> {
    match timeout(WRITE_LIMIT, socket.send(Message::text(text))).await {
        Ok(sent) => sent.map_err(|error| describe(&error)),
        Err(_) => Err(format!("it did not read for {} s", WRITE_LIMIT.as_secs())),
    }
}

/// Says good-bye, if the relay still listens.
pub(super) async fn close(mut socket: Socket) {
    // A connection that is broken anyway can't be closed any better.
    timeout(CLOSE_LIMIT, socket.close(None)).await.ok();
}
