package deploy

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math/big"
	"mime"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"sojourn.example/agent/internal/config"
	"sojourn.example/agent/internal/firewall"
	"sojourn.example/agent/internal/host"
	"sojourn.example/agent/internal/identity"
	"sojourn.example/agent/internal/lease"
	"sojourn.example/agent/internal/mtom"
)

// wall is a firewall that only remembers.
type wall struct{ rules []firewall.Rule }

func (*wall) Kind() string                     { return firewall.KindNftables }
func (w *wall) List() ([]firewall.Rule, error) { return w.rules, nil }
func (w *wall) Open(r firewall.Rule) ([]firewall.Rule, bool, error) {
	r.Kind = firewall.KindNftables
	for _, there := range w.rules {
		if there == r {
			return []firewall.Rule{r}, false, nil
		}
	}
	w.rules = append(w.rules, r)
	return []firewall.Rule{r}, true, nil
}
func (w *wall) Close(match func(firewall.Rule) bool) (changed bool, err error) {
	var kept []firewall.Rule
	for _, r := range w.rules {
		if match(r) {
			changed = true
		} else {
			kept = append(kept, r)
		}
	}
	w.rules = kept
	return changed, nil
}

// served is a serving deployment and its pinned client.
type served struct {
	*Deployment
	client  *http.Client
	url     string
	address string
	trust   *tls.Config // the client's
}

func serve(t *testing.T) *served {
	t.Helper()
	return serveAt(t, "127.0.0.1:0", t.TempDir())
}

func serveAt(t *testing.T, address, folder string) *served {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	id, err := identity.New("sojourn-0123456789ab")
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	d := New(Settings{
		Config: &config.Config{Run: "0123456789ab"}, Folder: folder, Version: "1.2.3", Facts: host.Learn(),
		Lease: lease.New(time.Minute), Firewall: &wall{},
	})
	server := d.Server()
	go func() { _ = server.Serve(listener, id.Server(sha256.Sum256(der))) }()
	t.Cleanup(func() {
		server.Close(time.Second)
		d.End()
	})
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(id.PEM()))
	trust := &tls.Config{
		RootCAs: roots, ServerName: "sojourn-0123456789ab", Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: trust.Clone()}}
	t.Cleanup(client.CloseIdleConnections)
	return &served{d, client, "https://" + listener.Addr().String() + "/", listener.Addr().String(), trust}
}

func envelope(operation, inner string) string {
	return `<e:Envelope xmlns:e="http://schemas.xmlsoap.org/soap/envelope/"><e:Body><` + operation + ` xmlns="urn:sojourn:deploy:1">` + inner +
		`</` + operation + `></e:Body></e:Envelope>`
}

// post gives status, content type and body.
func (s *served) post(t *testing.T, contentType string, body io.Reader, accept string) (int, string, []byte) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url, body)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", contentType)
	if accept != "" {
		request.Header.Set("Accept", accept)
	}
	response, err := s.client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	raw, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, response.Header.Get("Content-Type"), raw
}

// call gives the answer's text; it must be one.
func (s *served) call(t *testing.T, operation, inner string) string {
	t.Helper()
	status, media, raw := s.post(t, "text/xml; charset=utf-8", strings.NewReader(envelope(operation, inner)), "")
	if status != 200 || media != "text/xml; charset=utf-8" || !strings.Contains(string(raw), "<t:"+operation+"Response ") {
		t.Fatalf("%s: %d %s %s", operation, status, media, raw)
	}
	return string(raw)
}

// fault gives the code of the fault that the call is answered with.
func (s *served) fault(t *testing.T, contentType, body string) string {
	t.Helper()
	return s.faultOf(t, contentType, strings.NewReader(body))
}

func (s *served) faultOf(t *testing.T, contentType string, body io.Reader) string {
	t.Helper()
	status, media, raw := s.post(t, contentType, body, "")
	var fault struct {
		FaultCode string `xml:"Body>Fault>faultcode"`
		Code      string `xml:"Body>Fault>detail>Fault>Code"`
		Sentence  string `xml:"Body>Fault>detail>Fault>Sentence"`
	}
	if err := xml.Unmarshal(raw, &fault); err != nil || status != 500 || media != "text/xml; charset=utf-8" {
		t.Fatalf("%d %s %.2000s", status, media, raw)
	}
	return fault.FaultCode + " " + fault.Code + " " + fault.Sentence
}

func element(text, name string) string {
	_, rest, _ := strings.Cut(text, "<t:"+name+">")
	found, _, _ := strings.Cut(rest, "</t:"+name+">")
	return found
}

func TestGetInfo(t *testing.T) {
	s := serve(t)
	text := s.call(t, "GetInfo", "")
	for name, want := range map[string]string{
		"AgentVersion": "1.2.3", "Run": "0123456789ab", "TLSVersion": "TLS 1.3", "ServiceName": "sojourn-0123456789ab", "LeaseSeconds": "60", "FirewallKind": "nftables",
	} {
		if got := element(text, name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if strings.Contains(text, "FirewallRule") {
		t.Error("a rule that was not made is told of")
	}
}

func TestWSDLIsServedWithTheRealAddress(t *testing.T) {
	s := serve(t)
	response, err := s.client.Get(s.url + "?wsdl")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	raw, _ := io.ReadAll(response.Body)
	if response.StatusCode != 200 || !bytes.Contains(raw, []byte(`<soap:address location="`+s.url+`"/>`)) {
		t.Errorf("%d %.200s", response.StatusCode, raw)
	}
}

func TestOtherRequests(t *testing.T) {
	s := serve(t)
	for _, c := range []struct {
		method, path string
		status       int
	}{{"GET", "", 405}, {"PUT", "", 405}, {"POST", "other", 404}, {"GET", "other?wsdl", 404}, {"DELETE", "?wsdl", 405}} {
		request, _ := http.NewRequest(c.method, s.url+c.path, nil)
		response, err := s.client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != c.status {
			t.Errorf("%s /%s: %d", c.method, c.path, response.StatusCode)
		}
	}
}

func TestBadRequests(t *testing.T) {
	s := serve(t)
	part := "--b\r\nContent-ID: <r>\r\n\r\n" + envelope("PutFile", `<Path>a</Path><Offset>0</Offset><TotalSize>1</TotalSize><Data><i:Include xmlns:i="http://www.w3.org/2004/08/xop/include" href="cid:d"/></Data><Checksum/>`)
	for name, c := range map[string]struct{ contentType, body, want string }{
		"no media type":      {"", envelope("GetInfo", ""), "Content-Type is malformed"},
		"another media type": {"application/json", "{}", "neither text/xml"},
		"no boundary":        {"multipart/related", "x", "boundary"},
		"no parts":           {`multipart/related; boundary=b`, "x", "broken"},
		"no attachment":      {`multipart/related; boundary=b`, part + "\r\n--b--\r\n", "no attachment"},
		"attachment without multipart": {"text/xml", envelope("PutFile", `<Path>a</Path><Offset>0</Offset><TotalSize>1</TotalSize><Data><i:Include xmlns:i="http://www.w3.org/2004/08/xop/include" href="cid:d"/></Data><Checksum/>`),
			"names an attachment"},
		"unknown operation":       {"text/xml", envelope("Format", ""), "no operation"},
		"neither":                 {"text/xml", envelope("Execute", ""), "either Arguments or CommandLine"},
		"both":                    {"text/xml", envelope("Execute", "<Arguments>a</Arguments><CommandLine>a</CommandLine>"), "either Arguments or CommandLine"},
		"empty program":           {"text/xml", envelope("Execute", "<Arguments/>"), "name is empty"},
		"negative wait":           {"text/xml", envelope("Execute", "<CommandLine>true</CommandLine><WaitSeconds>-1</WaitSeconds>"), "negative"},
		"no time":                 {"text/xml", envelope("Execute", "<CommandLine>true</CommandLine><TimeoutSeconds>0</TimeoutSeconds>"), "zero"},
		"lease too long":          {"text/xml", envelope("RenewLease", "<Seconds>1e9</Seconds>"), "86400"},
		"port too high":           {"text/xml", envelope("OpenPort", "<Port>65536</Port>"), "65535"},
		"unknown protocol":        {"text/xml", envelope("OpenPort", "<Port>1</Port><Protocol>sctp</Protocol>"), "neither tcp nor udp"},
		"source no address":       {"text/xml", envelope("OpenPort", "<Port>1</Port><Source>a; reboot</Source>"), "neither an address nor a prefix"},
		"family of no source":     {"text/xml", envelope("OpenPort", "<Port>1</Port><Source>fd73::1</Source><Family>ipv4</Family>"), "not of Family"},
		"unknown family":          {"text/xml", envelope("OpenPort", "<Port>1</Port><Family>ipx</Family>"), "neither ipv4 nor ipv6"},
		"own run":                 {"text/xml", envelope("RemoveLeftovers", "<Run>0123456789ab</Run>"), "own"},
		"force without run":       {"text/xml", envelope("RemoveLeftovers", "<Force>true</Force>"), "Force without Run"},
		"short handle":            {"text/xml", envelope("Execute", "<CommandLine>true</CommandLine><Handle>0123456789abcde</Handle>"), "Handle"},
		"long handle":             {"text/xml", envelope("Execute", "<CommandLine>true</CommandLine><Handle>"+strings.Repeat("0", 65)+"</Handle>"), "Handle"},
		"capital handle":          {"text/xml", envelope("Execute", "<CommandLine>true</CommandLine><Handle>0123456789ABCDEF</Handle>"), "Handle"},
		"handle with a path":      {"text/xml", envelope("Execute", "<CommandLine>true</CommandLine><Handle>../../0123456789abcdef</Handle>"), "Handle"},
		"archive without input":   {"text/xml", envelope("Execute", "<CommandLine>true</CommandLine><Archive>ab</Archive>"), "must have an Input"},
		"negative archive offset": {"text/xml", envelope("Execute", "<CommandLine>true</CommandLine><Input>eA==</Input><Archive>ab</Archive><ArchiveOffset>-1</ArchiveOffset>"), "negative"},
		"long label":              {"text/xml", envelope("Execute", "<CommandLine>true</CommandLine><Label>"+strings.Repeat("ü", 257)+"</Label>"), "Label"},
		"no run":                  {"text/xml", envelope("RemoveLeftovers", "<Run>*</Run>"), "hexadecimal"},
		"negative length":         {"text/xml", envelope("GetFile", "<Path>a</Path><Length>-1</Length>"), "negative"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := s.fault(t, c.contentType, c.body); !strings.HasPrefix(got, "s:Client SD-504 ") || !strings.Contains(got, c.want) {
				t.Error(got)
			}
		})
	}
	if got := s.fault(t, "text/xml", envelope("ReadOutput", "<Handle>x</Handle><StandardOutputOffset>0</StandardOutputOffset><StandardErrorOffset>0</StandardErrorOffset>")); !strings.HasPrefix(got, "s:Server SD-705 ") {
		t.Error(got)
	}
}

// TestAnArchiveComesOnce sends a module's program whole, then without its archive.
func TestAnArchiveComesOnce(t *testing.T) {
	s := serve(t)
	archive := base64.StdEncoding.EncodeToString([]byte("PK\x03\x04 no zip, as far as Python is concerned"))
	before, after := "_ANSIBALLZ_WRAPPER = True\nzip_data = '", "'\n"
	sum := sha256.Sum256([]byte(archive))
	encoded := func(text string) string {
		return "<Input>" + base64.StdEncoding.EncodeToString([]byte(text)) + "</Input>"
	}
	ask := func(input, more string) string {
		return "<CommandLine>cat</CommandLine>" + input + "<WaitSeconds>20</WaitSeconds><Warm>true</Warm>" + more
	}
	without := ask(encoded(before+after), fmt.Sprintf("<Archive>%x</Archive><ArchiveOffset>%d</ArchiveOffset>", sum, len(before)))
	if got := s.fault(t, "text/xml", envelope("Execute", without)); !strings.HasPrefix(got, "s:Server SD-713 ") {
		t.Error(got)
	}
	for _, body := range []string{ask(encoded(before+archive+after), ""), without, without} {
		text := s.call(t, "Execute", body)
		if got, _ := base64.StdEncoding.DecodeString(element(text, "StandardOutput")); string(got) != before+archive+after {
			t.Errorf("%q", got)
		}
	}
}

// TestAnArchiveComesInParts makes an archive out of what came with another, and of what is new.
func TestAnArchiveComesInParts(t *testing.T) {
	s := serve(t)
	text := func(content string) string { return base64.StdEncoding.EncodeToString([]byte(content)) }
	sum := func(content string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(text(content)))) }
	before, after := "_ANSIBALLZ_WRAPPER = True\nzip_data = '", "'\n"
	first, second, third := "PK\x03\x04 one, two, three", "PK\x03\x04 two, one, four", "PK\x03\x04 four"
	ask := func(input, more string) string {
		return "<CommandLine>cat</CommandLine><Input>" + text(input) + "</Input><WaitSeconds>20</WaitSeconds><Warm>true</Warm>" + more
	}
	parts := func(archive, parts string) string {
		return fmt.Sprintf("<Archive>%s</Archive><ArchiveOffset>%d</ArchiveOffset><ArchiveParts>%s</ArchiveParts>", sum(archive), len(before), parts)
	}
	of := func(archive, part string) string {
		return fmt.Sprintf("%d:%s:%d", len(part), sum(archive), strings.Index(archive, part))
	}
	one := func(input, parts, whole string) {
		t.Helper()
		got, _ := base64.StdEncoding.DecodeString(element(s.call(t, "Execute", ask(input, parts)), "StandardOutput"))
		if string(got) != before+text(whole)+after {
			t.Errorf("%q", got)
		}
	}
	inSecond := of(first, "PK\x03\x04 ") + " " + of(first, "two, ") + " " + of(first, "one, ") + " 4"
	if got := s.fault(t, "text/xml", envelope("Execute", ask(before+"four"+after, parts(second, inSecond)))); !strings.HasPrefix(got, "s:Server SD-713 ") {
		t.Error(got)
	}
	one(before+first+after, parts(first, strconv.Itoa(len(first))), first) // all of it is new
	one(before+"four"+after, parts(second, inSecond), second)
	one(before+after, parts(third, of(first, "PK\x03\x04 ")+" "+of(second, "four")), third) // out of what came in parts
	one(before+after, fmt.Sprintf("<Archive>%s</Archive><ArchiveOffset>%d</ArchiveOffset>", sum(third), len(before)), third)

	for name, c := range map[string]struct{ input, more, want string }{
		"another's":      {before + "five" + after, parts(second, inSecond), "not those of the Archive"},
		"short":          {before + "fo", parts(second, inSecond), "less came"},
		"short before":   {"x", parts(second, inSecond), "less came"},
		"beyond the end": {before + after, parts(second, fmt.Sprintf("%d:%s:%d", len(first), sum(first), 1)), "not within"},
		"no offset":      {before + after, parts(second, "4:"+sum(first)), "not within"},
		"negative":       {before + after, parts(second, "-4"), "a size is none"},
		"too large":      {before + after, parts(second, "786433"), "beyond"},
		"large in all":   {before + after, parts(second, strings.Repeat(fmt.Sprintf("%d:%s:0 ", len(first), sum(first)), 3000)+strconv.Itoa(786432-2999*len(first))), "beyond"},
		"too many":       {before + after, parts(second, strings.Repeat("0 ", 4097)), "more than 4096"},
		"far in":         {before + after, strings.Replace(parts(second, inSecond), fmt.Sprintf(">%d<", len(before)), ">1048577<", 1), "ArchiveOffset"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := s.fault(t, "text/xml", envelope("Execute", ask(c.input, c.more))); !strings.HasPrefix(got, "s:Client SD-504 ") || !strings.Contains(got, c.want) {
				t.Error(got)
			}
		})
	}
}

// TestAnArchiveComesAhead has archives kept before any module comes with them.
func TestAnArchiveComesAhead(t *testing.T) {
	s := serve(t)
	text := func(content string) string { return base64.StdEncoding.EncodeToString([]byte(content)) }
	sum := func(content string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(text(content)))) }
	first, second := "PK\x03\x04 one, two, three", "PK\x03\x04 four"
	keep := func(archive, parts, data string) string {
		if data != "" {
			data = "<Data>" + text(data) + "</Data>"
		}
		return fmt.Sprintf("<Archive>%s</Archive><ArchiveParts>%s</ArchiveParts>%s", sum(archive), parts, data)
	}
	whole, inFirst := strconv.Itoa(len(first)), fmt.Sprintf("5:%s:0", sum(first))
	if got := s.fault(t, "text/xml", envelope("KeepArchive", keep(second, inFirst+" 4", "four"))); !strings.HasPrefix(got, "s:Server SD-713 ") {
		t.Error(got)
	}
	s.call(t, "KeepArchive", keep(first, whole, first))
	s.call(t, "KeepArchive", keep(first, fmt.Sprintf("%s:%s:0", whole, sum(first)), "")) // to do it again is no harm
	s.call(t, "KeepArchive", keep(second, inFirst+" 4", "four"))
	before, after := "_ANSIBALLZ_WRAPPER = True\nzip_data = '", "'\n"
	for _, archive := range []string{first, second} {
		asked := fmt.Sprintf("<CommandLine>cat</CommandLine><Input>%s</Input><WaitSeconds>20</WaitSeconds><Warm>true</Warm><Archive>%s</Archive><ArchiveOffset>%d</ArchiveOffset>",
			text(before+after), sum(archive), len(before))
		got, _ := base64.StdEncoding.DecodeString(element(s.call(t, "Execute", asked), "StandardOutput"))
		if string(got) != before+text(archive)+after {
			t.Errorf("%q", got)
		}
	}
	for want, body := range map[string]string{
		"not those of the Archive": keep(second, inFirst+" 4", "five"),
		"less came":                keep(second, inFirst+" 4", "fo"),
		"more than ArchiveParts":   keep(second, inFirst+" 4", "fours"),
		"not within":               keep(second, "5:"+sum(first), ""),
	} {
		if got := s.fault(t, "text/xml", envelope("KeepArchive", body)); !strings.HasPrefix(got, "s:Client SD-504 ") || !strings.Contains(got, want) {
			t.Error(got)
		}
	}
}

// TestAnInterpreterIsMadeReady has one, or none, made ready: neither is a fault.
func TestAnInterpreterIsMadeReady(t *testing.T) {
	s := serve(t)
	ask := func(commandLine, more, beginning string) string {
		return fmt.Sprintf("<CommandLine>%s</CommandLine><Interpreter>/no/such</Interpreter><Interpreter>sh</Interpreter>%s<Beginning>%s</Beginning>", commandLine, more, base64.StdEncoding.EncodeToString([]byte(beginning)))
	}
	mark := filepath.Join(t.TempDir(), "begun")
	s.call(t, "PrepareInterpreter", ask("echo $A @interpreter@ &gt;"+mark, "<Environment><Name>A</Name><Value>b</Value></Environment>", "x"))
	if runtime.GOOS == "linux" {
		if text, err := os.ReadFile(mark); !strings.HasPrefix(string(text), "b /") || !strings.HasSuffix(string(text), "/sh\n") {
			t.Errorf("it was begun with %q, %v", text, err)
		}
	}
	s.call(t, "PrepareInterpreter", ask("true", "<User>nobody of that name</User>", ""))
	for want, body := range map[string]string{"too long": ask("true", "", strings.Repeat("x", 1<<20+1)), "Beginning": "<CommandLine>true</CommandLine>", "64 names": ask("true", strings.Repeat("<Interpreter>x</Interpreter>", 63), "")} {
		if got := s.fault(t, "text/xml", envelope("PrepareInterpreter", body)); !strings.HasPrefix(got, "s:Client ") || !strings.Contains(got, want) {
			t.Error(got[:min(len(got), 300)])
		}
	}
}

func TestAPanicIsAFaultAndTheAgentGoesOn(t *testing.T) {
	s := serve(t)
	s.Deployment.Firewall = nil
	if got := s.fault(t, "text/xml", envelope("ListPorts", "")); !strings.HasPrefix(got, "s:Server SD-903 ") {
		t.Error(got)
	}
	s.Deployment.Firewall = &wall{}
	s.call(t, "ListPorts", "")
}

// mtomPut is a PutFile request whose data is streamed.
func mtomPut(path string, total int64, data io.Reader, sum []byte) (string, io.Reader) {
	include := func(id string) string {
		return `<i:Include xmlns:i="http://www.w3.org/2004/08/xop/include" href="cid:` + id + `"/>`
	}
	root := envelope("PutFile", fmt.Sprintf("<Path>%s</Path><Offset>0</Offset><TotalSize>%d</TotalSize><Data>%s</Data><Checksum>%s</Checksum>",
		path, total, include("d"), include("c")))
	return `multipart/related; type="application/xop+xml"; start="<r>"; boundary="bound"`, io.MultiReader(
		strings.NewReader("--bound\r\nContent-Type: application/xop+xml\r\nContent-ID: <r>\r\n\r\n"+root+"\r\n--bound\r\nContent-ID: <d>\r\n\r\n"), data,
		strings.NewReader("\r\n--bound\r\nContent-ID: <c>\r\n\r\n"+string(sum)+"\r\n--bound--\r\n"))
}

func TestFilesGoThereAndBackInEveryPackaging(t *testing.T) {
	s := serve(t)
	content := bytes.Repeat([]byte("\r\n--boun\r0123456789abcdef\x00\xff"), 200000)
	sum := sha256.Sum256(content)
	contentType, body := mtomPut("a", int64(len(content)), bytes.NewReader(content), sum[:])
	status, _, raw := s.post(t, contentType, body, "")
	if got := element(string(raw), "Checksum"); status != 200 || got != base64.StdEncoding.EncodeToString(sum[:]) {
		t.Fatalf("%d %s", status, raw)
	}
	// As attachments, where the client takes them ...
	_, media, raw := s.post(t, "text/xml", strings.NewReader(envelope("GetFile", "<Path>a</Path>")), `text/xml, Multipart/Related; type="application/xop+xml"`)
	_, parameters, err := mime.ParseMediaType(media)
	if err != nil {
		t.Fatal(err)
	}
	message, err := mtom.NewReader(bytes.NewReader(raw), parameters)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := message.Root(); err != nil {
		t.Fatal(err)
	}
	data, err := message.Open("1@sojourn.deploy")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(data); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes came back of %d: %v", len(got), len(content), err)
	}
	check, err := message.Open("2@sojourn.deploy")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(check); err != nil || !bytes.Equal(got, sum[:]) {
		t.Error("the checksum differs", err)
	}
	// ... and inline where it does not.
	text := s.call(t, "GetFile", "<Path>a</Path><Offset>9</Offset><Length>16</Length>")
	part := sha256.Sum256([]byte("0123456789abcdef"))
	if element(text, "Data") != base64.StdEncoding.EncodeToString([]byte("0123456789abcdef")) || element(text, "Checksum") != base64.StdEncoding.EncodeToString(part[:]) {
		t.Error(text)
	}
	small := sha256.Sum256([]byte("hi"))
	s.call(t, "PutFile", "<Path>b</Path><Offset>0</Offset><TotalSize>2</TotalSize><Data>aGk=</Data><Checksum>"+base64.StdEncoding.EncodeToString(small[:])+"</Checksum>")
	if got, _ := os.ReadFile(filepath.Join(s.Folder, "b")); string(got) != "hi" {
		t.Errorf("%q", got)
	}
}

// A fault must reach a client that goes on sending: it would meet a reset connection otherwise.
func TestAFaultInTheMiddleOfAnUpload(t *testing.T) {
	s := serve(t)
	const size = 32 << 20
	contentType, body := mtomPut("/no/such/folder/a", size, io.LimitReader(zeros{}, size), make([]byte, 32))
	status, _, raw := s.post(t, contentType, body, "")
	if status != 500 || !strings.Contains(string(raw), "SD-706") {
		t.Errorf("%d %s", status, raw)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestATransferThatBreaksOffCanGoOn(t *testing.T) {
	s := serve(t)
	content := strings.Repeat("0123456789", 100000)
	sum := sha256.Sum256([]byte(content))
	gone, leave := context.WithCancel(t.Context())
	reader, writer := io.Pipe()
	contentType, body := mtomPut("a", int64(len(content)), reader, sum[:])
	request, _ := http.NewRequestWithContext(gone, http.MethodPost, s.url, body)
	request.Header.Set("Content-Type", contentType)
	done := make(chan error)
	go func() {
		_, err := s.client.Do(request)
		done <- err
	}()
	_, _ = io.WriteString(writer, content[:400000])
	leave()
	writer.CloseWithError(io.ErrClosedPipe)
	if err := <-done; err == nil {
		t.Fatal("the cut request was answered")
	}
	var at int64
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		text := s.call(t, "Stat", "<Path>a.sojourn-part</Path>")
		if _, err := fmt.Sscan(element(text, "Size"), &at); err == nil && at > 0 {
			if free := s.resume(t, content, at, sum); free {
				break
			}
		}
	}
	if got, _ := os.ReadFile(filepath.Join(s.Folder, "a")); string(got) != content {
		t.Errorf("%d bytes, from %d on", len(got), at)
	}
}

// resume sends the rest; false: the agent has not noticed the first client's end yet.
func (s *served) resume(t *testing.T, content string, at int64, sum [32]byte) bool {
	t.Helper()
	encode := base64.StdEncoding.EncodeToString
	status, _, _ := s.post(t, "text/xml", strings.NewReader(envelope("PutFile", fmt.Sprintf(
		"<Path>a</Path><Offset>%d</Offset><TotalSize>%d</TotalSize><Data>%s</Data><Checksum>%s</Checksum>",
		at, len(content), encode([]byte(content[at:])), encode(sum[:])))), "")
	return status == 200
}

func TestExecuteAndReadOutput(t *testing.T) {
	s := serve(t)
	text := s.call(t, "Execute", "<Arguments>/bin/sh</Arguments><Arguments>-c</Arguments><Arguments>cat; echo err &gt;&amp;2; exit 3</Arguments>"+
		"<Environment><Name>A</Name><Value>b</Value></Environment><Input>aGVsbG8=</Input><WaitSeconds>20</WaitSeconds>")
	if element(text, "StandardOutput") != "aGVsbG8=" || element(text, "StandardError") != "ZXJyCg==" || element(text, "ExitCode") != "3" || element(text, "Running") != "false" {
		t.Error(text)
	}
	text = s.call(t, "Execute", "<CommandLine>read x; printf 0123456789; read y</CommandLine><KeepInputOpen>true</KeepInputOpen>")
	handle := "<Handle>" + element(text, "Handle") + "</Handle>"
	if element(text, "Running") != "true" || strings.Contains(text, "ExitCode") {
		t.Error(text)
	}
	if got := element(s.call(t, "WriteInput", handle+"<Data>Cg==</Data>"), "BytesWritten"); got != "1" {
		t.Error(got)
	}
	read := func(offset, rest string) string {
		return s.call(t, "ReadOutput", handle+"<StandardOutputOffset>"+offset+"</StandardOutputOffset><StandardErrorOffset>0</StandardErrorOffset>"+rest)
	}
	text = read("0", "<WaitSeconds>20</WaitSeconds><MaximumBytes>4</MaximumBytes>")
	if element(text, "StandardOutput") != "MDEyMw==" || element(text, "Running") != "true" {
		t.Error(text)
	}
	s.call(t, "WriteInput", handle+"<Close>true</Close>")
	// 'Running' is over only for who has read to the end.
	for offset := "4"; ; {
		text = read(offset, "<WaitSeconds>20</WaitSeconds><MaximumBytes>4</MaximumBytes>")
		if element(text, "ExitCode") != "" && offset == "8" {
			break
		}
		if offset == "4" {
			if element(text, "StandardOutput") != "NDU2Nw==" || element(text, "Running") != "true" {
				t.Fatal(text)
			}
			offset = "8"
		}
	}
	if element(text, "StandardOutput") != "ODk=" || element(text, "Running") != "false" {
		t.Error(text)
	}
	if got := s.fault(t, "text/xml", envelope("ReadOutput", handle+"<StandardOutputOffset>11</StandardOutputOffset><StandardErrorOffset>0</StandardErrorOffset>")); !strings.Contains(got, "offset") {
		t.Error(got)
	}
	s.call(t, "Release", handle)
	// Output comes as an attachment where the client takes that, and there is much.
	for command, wanted := range map[string]string{"true": "text/xml", "head -c 16384 /dev/zero": "text/xml", "head -c 16385 /dev/zero": "multipart/related"} {
		ask := envelope("Execute", "<CommandLine>"+command+"</CommandLine><WaitSeconds>20</WaitSeconds>")
		if _, media, _ := s.post(t, "text/xml", strings.NewReader(ask), "multipart/related"); !strings.HasPrefix(media, wanted) {
			t.Error(command, media)
		}
	}
}

func TestExecuteSentAgainStartsNothing(t *testing.T) {
	s := serve(t)
	file := filepath.Join(t.TempDir(), "started")
	ask := "<CommandLine>echo x &gt;&gt; " + file + "; echo out; read x</CommandLine><KeepInputOpen>true</KeepInputOpen><SafeToKill>true</SafeToKill>" +
		"<Handle>0123456789abcdef</Handle><Label>flash &lt;1&gt;</Label>"
	answers := make(chan string)
	for range 8 {
		go func() {
			_, _, raw := s.post(t, "text/xml", strings.NewReader(envelope("Execute", ask)), "")
			answers <- element(string(raw), "Handle")
		}()
	}
	for range 8 {
		if got := <-answers; got != "0123456789abcdef" {
			t.Errorf("the handle is %q", got)
		}
	}
	text := s.call(t, "ListExecutions", "")
	if element(text, "Label") != "flash &lt;1&gt;" || element(text, "Running") != "true" || element(text, "SafeToKill") != "true" ||
		strings.Count(text, "<t:Execution>") != 1 || strings.Contains(text, "ExitCode") {
		t.Error(text)
	}
	handle := "<Handle>0123456789abcdef</Handle>"
	s.call(t, "WriteInput", handle+"<Close>true</Close>")
	from := func(offset string) string {
		return handle + "<StandardOutputOffset>" + offset + "</StandardOutputOffset><StandardErrorOffset>0</StandardErrorOffset><WaitSeconds>20</WaitSeconds>"
	}
	s.call(t, "ReadOutput", from("0")) // there is nothing at another offset yet
	read := from("4")
	for element(s.call(t, "ReadOutput", read), "Running") == "true" {
	}
	// Ended, and read by the one who asks again: it is still that one, from the beginning.
	if text := s.call(t, "Execute", ask+"<!-- again -->"); element(text, "StandardOutput") != "b3V0Cg==" || element(text, "ExitCode") != "1" {
		t.Error(text)
	}
	if raw, _ := os.ReadFile(file); string(raw) != "x\n" {
		t.Errorf("started %d times", len(raw)/2)
	}
	if text := s.call(t, "ListExecutions", ""); element(text, "Running") != "false" || element(text, "ExitCode") != "1" {
		t.Error(text)
	}
	s.call(t, "Release", handle)
	if text := s.call(t, "ListExecutions", ""); strings.Contains(text, "<t:Execution>") {
		t.Error(text)
	}
}

func TestExecuteReleases(t *testing.T) {
	s := serve(t)
	first, running := "0123456789abcdef", "0123456789abcde0"
	s.call(t, "Execute", "<CommandLine>echo out</CommandLine><WaitSeconds>20</WaitSeconds><Handle>"+first+"</Handle>")
	s.call(t, "Execute", "<CommandLine>read x</CommandLine><KeepInputOpen>true</KeepInputOpen><SafeToKill>true</SafeToKill><Handle>"+running+"</Handle>")
	s.call(t, "Execute", "<CommandLine>true</CommandLine><WaitSeconds>20</WaitSeconds><Release>0000000000000000</Release><Release>"+running+"</Release><Release>"+first+"</Release>")
	gone := func(first string) {
		t.Helper()
		for text := first; strings.Contains(text, first); { // it is done beside the answer
			text = s.call(t, "ListExecutions", "")
			if !strings.Contains(text, running) {
				t.Fatal("one that runs was released")
			}
		}
	}
	gone(first)

	// Not while the new process is waited for: that one would be slowed down by it.
	first, next := "0123456789abcde2", "0123456789abcde1"
	s.call(t, "Execute", "<CommandLine>true</CommandLine><WaitSeconds>20</WaitSeconds><Handle>"+first+"</Handle>")
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		s.call(t, "Execute", "<CommandLine>read x</CommandLine><KeepInputOpen>true</KeepInputOpen><WaitSeconds>20</WaitSeconds><Handle>"+next+"</Handle><Release>"+first+"</Release>")
	}()
	text := ""
	for !strings.Contains(text, next) {
		text = s.call(t, "ListExecutions", "")
	}
	if !strings.Contains(text, first) {
		t.Error("released beside the process that came with it: " + text)
	}
	s.call(t, "WriteInput", "<Handle>"+next+"</Handle><Close>true</Close>")
	<-answered
	gone(first)
	if got := s.fault(t, "text/xml", envelope("Execute", "<CommandLine>true</CommandLine>"+strings.Repeat("<Release>0123456789abcdef</Release>", 65))); !strings.Contains(got, "64 handles") {
		t.Error(got)
	}
}

func TestExecuteAtATerminal(t *testing.T) {
	s := serve(t)
	handle := "<Handle>0123456789abcdef</Handle>"
	s.call(t, "Execute", "<CommandLine>printf p: &gt;/dev/tty; read x &lt;/dev/tty; echo $x</CommandLine><KeepInputOpen>true</KeepInputOpen>"+handle+"<Terminal>true</Terminal>")
	read := func(errors string) string {
		return s.call(t, "ReadOutput", handle+"<StandardOutputOffset>0</StandardOutputOffset><StandardErrorOffset>"+errors+"</StandardErrorOffset><WaitSeconds>20</WaitSeconds>")
	}
	if text := read("0"); element(text, "StandardError") != "cDo=" {
		t.Fatal(text)
	}
	if text := s.call(t, "WriteInput", handle+"<Data>eQo=</Data><Answer>true</Answer>"); element(text, "BytesWritten") != "2" {
		t.Error(text)
	}
	if text := read("2"); element(text, "StandardOutput") != "eQo=" {
		t.Error(text)
	}
	for wanted, body := range map[string]string{
		"does not Close": handle + "<Data>eQo=</Data><Close>true</Close><Answer>true</Answer>",
	} {
		if got := s.fault(t, "text/xml", envelope("WriteInput", body)); !strings.Contains(got, wanted) {
			t.Error(got)
		}
	}
	for _, body := range []string{"<Arguments>true</Arguments><Terminal>true</Terminal>", "<CommandLine>true</CommandLine><Warm>true</Warm><Terminal>true</Terminal>"} {
		if got := s.fault(t, "text/xml", envelope("Execute", body)); !strings.Contains(got, "Terminal is for") {
			t.Error(got)
		}
	}
}

func TestPorts(t *testing.T) {
	s := serve(t)
	text := s.call(t, "OpenPort", "<Port>8080</Port><Source>10.1.2.3/8</Source>")
	if element(text, "Changed") != "true" || element(text, "Name") != "sojourn-0123456789ab-tcp-8080" || element(text, "Source") != "10.0.0.0/8" ||
		element(text, "Family") != "ipv4" || !strings.Contains(text, "<t:Run>0123456789ab</t:Run>") {
		t.Error(text)
	}
	if text := s.call(t, "OpenPort", "<Port>8080</Port><Source>10.0.0.0/8</Source>"); element(text, "Changed") != "false" {
		t.Error(text)
	}
	if text := s.call(t, "OpenPort", "<Port>53</Port><Protocol>udp</Protocol><Keep>true</Keep>"); element(text, "Name") != "sojourn-kept-udp-53" || strings.Contains(text, "<t:Run>") {
		t.Error(text)
	}
	_, _, _ = s.Firewall.Open(firewall.Rule{Name: "sojourn-ba9876543210-tcp-8080", Port: 8080, Protocol: "tcp"})
	if text := s.call(t, "ListPorts", ""); strings.Count(text, "<t:Rule>") != 3 {
		t.Error(text)
	}
	for _, c := range [][2]string{
		{"<Port>8080</Port><Protocol>udp</Protocol>", "false"}, {"<Port>8080</Port><Source>10.0.0.1</Source>", "false"},
		{"<Port>8080</Port><Family>ipv6</Family>", "false"}, {"<Port>8080</Port>", "true"}, {"<Port>8080</Port>", "false"},
		{"<Port>53</Port><Protocol>udp</Protocol>", "true"},
	} {
		if text := s.call(t, "ClosePort", c[0]); element(text, "Changed") != c[1] {
			t.Error(c, text)
		}
	}
	if rules, _ := s.Firewall.List(); len(rules) != 1 { // another run's
		t.Error(rules)
	}
}

func TestShutdownIsAnsweredFirst(t *testing.T) {
	s := serve(t)
	s.call(t, "Execute", "<CommandLine>read x</CommandLine><KeepInputOpen>true</KeepInputOpen>")
	if got := element(s.call(t, "Shutdown", ""), "Waiting"); got != "1" {
		t.Error(got)
	}
	select {
	case <-s.ShutdownAsked():
	case <-time.After(20 * time.Second):
		t.Error("nobody was told")
	}
}

func TestSlowStrangersAreCutOff(t *testing.T) {
	patience := headerTimeout
	defer func() { headerTimeout = patience }()
	headerTimeout = 100 * time.Millisecond
	s := serve(t)
	address := strings.Trim(strings.TrimPrefix(s.url, "https:"), "/")
	connection, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	_ = connection.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := connection.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}

func TestManyStrangersAreBounded(t *testing.T) {
	s := serve(t)
	address := strings.TrimSuffix(strings.TrimPrefix(s.url, "https://"), "/")
	var strangers []net.Conn
	defer func() {
		for _, c := range strangers {
			c.Close()
		}
	}()
	for range maximumAtDoor + 20 {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		strangers = append(strangers, c)
	}
	s.call(t, "GetInfo", "") // its own client gets in
	for i, c := range strangers[:20] {
		_ = c.SetReadDeadline(time.Now().Add(headerTimeout / 2))
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("stranger %d still takes room: %v", i, err)
		}
	}
	last := strangers[len(strangers)-1]
	_ = last.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := last.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the newest was sent away:", err)
	}
}
