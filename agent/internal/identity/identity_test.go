package identity

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// serve answers each connection that gets through with one byte, and counts them.
func serve(t *testing.T, server *tls.Config) (address string, answered chan struct{}) {
	t.Helper()
	listener, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	answered = make(chan struct{}, 10)
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer connection.Close()
				if connection.(*tls.Conn).Handshake() == nil {
					answered <- struct{}{}
					_, _ = connection.Write([]byte("x"))
				}
			}()
		}
	}()
	return listener.Addr().String(), answered
}

// talk gives what the client gets: in TLS 1.3 its handshake can succeed before the server has looked at its certificate.
func talk(address string, config *tls.Config) (string, error) {
	connection, err := tls.Dial("tcp", address, config)
	if err != nil {
		return "", err
	}
	defer connection.Close()
	_ = connection.SetDeadline(time.Now().Add(20 * time.Second))
	all, err := io.ReadAll(connection)
	return string(all), err
}

func TestOnlyThePinnedClient(t *testing.T) {
	agent, err := New("sojourn-0123456789ab")
	if err != nil {
		t.Fatal(err)
	}
	broker, err := New("broker")
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := New("broker")
	if err != nil {
		t.Fatal(err)
	}
	address, answered := serve(t, agent.Server(sha256.Sum256(broker.certificate.Certificate[0])))

	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(agent.PEM())) {
		t.Fatal("the certificate's PEM is not one")
	}
	client := func(change func(*tls.Config)) *tls.Config {
		c := &tls.Config{RootCAs: roots, ServerName: "sojourn-0123456789ab", Certificates: []tls.Certificate{broker.certificate}}
		change(c)
		return c
	}
	cache := tls.NewLRUClientSessionCache(4)
	good := client(func(c *tls.Config) { c.ClientSessionCache = cache })
	for range 2 {
		if got, err := talk(address, good); got != "x" || err != nil {
			t.Fatalf("the pinned client got %q, %v", got, err)
		}
		<-answered
	}
	for name, bad := range map[string]*tls.Config{
		"no certificate":      client(func(c *tls.Config) { c.Certificates = nil }),
		"another certificate": client(func(c *tls.Config) { c.Certificates = []tls.Certificate{stranger.certificate} }),
		"TLS 1.2":             client(func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }),
		"another certificate with the pinned one behind": client(func(c *tls.Config) {
			chain := stranger.certificate
			chain.Certificate = append(chain.Certificate[:1:1], broker.certificate.Certificate[0])
			c.Certificates = []tls.Certificate{chain}
		}),
		"the pinned certificate with another key": client(func(c *tls.Config) {
			c.Certificates = []tls.Certificate{{Certificate: broker.certificate.Certificate, PrivateKey: stranger.certificate.PrivateKey}}
		}),
		"no certificate, resumed": client(func(c *tls.Config) { c.Certificates, c.ClientSessionCache = nil, cache }),
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := talk(address, bad); got != "" || err == nil {
				t.Errorf("got %q, %v", got, err)
			}
			select {
			case <-answered:
				t.Error("the server took the connection")
			case <-time.After(20 * time.Millisecond):
			}
		})
	}
}

func TestTheServerSpeaksNothingWithoutTLS(t *testing.T) {
	agent, err := New("a")
	if err != nil {
		t.Fatal(err)
	}
	address, answered := serve(t, agent.Server([32]byte{}))
	connection, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	_, _ = io.WriteString(connection, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	_ = connection.SetDeadline(time.Now().Add(20 * time.Second))
	if got, err := io.ReadAll(connection); len(got) > 7 || errors.Is(err, io.ErrNoProgress) { // a TLS alert at most
		t.Errorf("%q, %v", got, err)
	}
	select {
	case <-answered:
		t.Error("the server took the connection")
	default:
	}
}

func TestCertificateIsSelfSignedAndAnyTimeValid(t *testing.T) {
	agent, err := New("sojourn-0123456789ab")
	if err != nil {
		t.Fatal(err)
	}
	block, rest := pem.Decode([]byte(agent.PEM()))
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil || len(rest) > 0 {
		t.Fatal(err, rest)
	}
	if err := certificate.CheckSignatureFrom(certificate); err != nil {
		t.Error(err)
	}
	if certificate.NotBefore.Year() > 1970 || certificate.NotAfter.Year() < 9999 {
		t.Error(certificate.NotBefore, certificate.NotAfter)
	}
}
