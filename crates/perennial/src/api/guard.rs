//! Bodies that end when whoever asked loses their rights: uploads that are held back, downloads, logs, events.

use axum::body::Body;
use futures::StreamExt as _;

use crate::service::{Access, Caller};

/// A body that breaks off when the caller has less rights than they came with.
pub fn guarded(body: Body, access: &Access, caller: &Caller) -> Body {
    let (access, caller) = (access.clone(), caller.clone());
    let lost = Box::pin(async move { access.lost(&caller).await });
    let stream = futures::stream::unfold(Some((body.into_data_stream(), lost)), |reading| async move {
        let (mut body, mut lost) = reading?;
        tokio::select! {
            biased;
            () = &mut lost => {
                Some((Err(std::io::Error::other("whoever asked has not the rights any more")), None))
            }
            next = body.next() => {
                next.map(|next| (next.map_err(std::io::Error::other), Some((body, lost))))
            }
        }
    });
    Body::from_stream(stream)
}
