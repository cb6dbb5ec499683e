//! A TCP socket: tokio's while its handshake lasts, then the lane's, which waits for all of its own with one epoll. What tokio keeps
//! for a socket and for the task that waits for it is 400 bytes.

use std::{
    io::{self, IoSlice, Read as _},
    net::{Shutdown, TcpStream as StdStream},
    os::fd::{AsFd, BorrowedFd},
    pin::Pin,
    task::{Context, Poll, ready},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// See the module's page.
#[derive(Debug)]
pub(crate) enum Socket {
    /// In its handshake: wakes the task that it is polled with.
    Handshake(Box<TcpStream>),
    /// On its lane: the lane's epoll tells when to poll it again, and only then there is something.
    Lane {
        /// It does not block.
        stream: StdStream,
        /// It was read out since it was told ready.
        is_drained: bool,
        /// The peer has ended its direction: told once, perhaps before what came last was read.
        is_hung_up: bool,
        /// Ours has ended. Ending it again would wake the lane each time: to epoll it is news.
        is_shut: bool,
    },
    /// Between the two, where giving it over failed.
    Gone,
}

impl Socket {
    /// The handshake is over.
    ///
    /// # Errors
    /// Of the operating system; the socket is closed then.
    pub fn settle(&mut self) -> io::Result<()> {
        if let Self::Handshake(stream) = std::mem::replace(self, Self::Gone) {
            *self = Self::Lane {
                stream: stream.into_std()?,
                is_drained: false,
                is_hung_up: false,
                is_shut: false,
            };
        }
        Ok(())
    }

    /// The lane's epoll told that it is ready.
    pub fn told(&mut self, hung_up: bool) {
        if let Self::Lane { is_drained, is_hung_up, .. } = self {
            *is_drained = false;
            *is_hung_up |= hung_up;
        }
    }

    /// For the lane's epoll.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Lane { stream, .. } => Some(stream.as_fd()),
            Self::Handshake(_) | Self::Gone => None,
        }
    }

    /// Writes as much as is taken now.
    ///
    /// # Errors
    /// `WouldBlock`: nothing is.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Handshake(stream) => stream.try_write(bytes),
            Self::Lane { stream, .. } => SockRef::from(stream).send(bytes),
            Self::Gone => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// The same of several slices.
    ///
    /// # Errors
    /// As of [`Self::try_write`].
    pub fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Handshake(stream) => stream.try_write_vectored(slices),
            Self::Lane { stream, .. } => SockRef::from(stream).send_vectored(slices),
            Self::Gone => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Writes until something is taken. Beside tokio's cooperative budget: a flush pass writes to thousands of sockets in one poll.
    pub fn poll_write_with(
        &mut self,
        cx: &mut Context<'_>,
        write: impl Fn(&Self) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            match write(self) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => match self {
                    Self::Handshake(stream) => ready!(stream.poll_write_ready(cx))?,
                    Self::Lane { .. } | Self::Gone => return Poll::Pending,
                },
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => return Poll::Ready(outcome),
            }
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Handshake(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Lane { is_drained: true, .. } => Poll::Pending,
            Self::Lane { stream, is_drained, is_hung_up, .. } => loop {
                let wanted = buffer.remaining();
                match stream.read(buffer.initialize_unfilled()) {
                    Ok(bytes) => {
                        buffer.advance(bytes);
                        // Less than there was room for: what comes now is told anew. But an end that came before is not.
                        *is_drained = bytes < wanted && !*is_hung_up;
                        return Poll::Ready(Ok(()));
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Poll::Ready(Err(error)),
                }
            },
            Self::Gone => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_with(cx, |socket| socket.try_write(bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Handshake(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Lane { is_shut: true, .. } => Poll::Ready(Ok(())),
            Self::Lane { stream, is_shut, .. } => {
                *is_shut = true;
                match stream.shutdown(Shutdown::Write) {
                    // The peer was faster.
                    Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
                    outcome => Poll::Ready(outcome),
                }
            }
            Self::Gone => Poll::Ready(Ok(())),
        }
    }
}
