//! A platform that brings back what is sent there: the other half of a conversation that goes round in circles.

/// The script of a platform called `loop`, with one peer: their messages are the lines of the file `said`, and what is
/// sent to them runs `on_send`, a piece of shell that finds the text in `$text`.
pub fn loop_platform(sender: &str, on_send: &str) -> String {
    r#"verb=$1; shift
while [ $# -gt 1 ]; do
  case $1 in --text) text=$2 ;; --idempotency-key) key=$2 ;; esac
  shift 2
done
case $verb in
info) echo '{"channel":"loop","name":"loop","version":"1","supports":["monitor","send"]}' ;;
monitor)
  n=0
  tail -n +1 -f said | while IFS= read -r line; do
    n=$((n + 1))
    echo '{"event_id":"loop:'$n'","timestamp":0,"content":"'$line'","content_type":"text","channel":"loop","account_id":"me","sender_id":"SENDER","peer_id":"p","peer_kind":"dm"}'
  done ;;
send)
  ON_SEND
  echo '{"success":true,"message_ids":["'$key'"],"chunks_sent":1}' ;;
esac
"#
    .replace("SENDER", sender)
    .replace("ON_SEND", on_send)
}
