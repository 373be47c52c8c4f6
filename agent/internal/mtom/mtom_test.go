package mtom

import (
	"bytes"
	"io"
	"mime"
	"strings"
	"testing"
	"testing/iotest"
)

const boundary = "x=y?/'z"

func message(parts ...string) string {
	return "preamble\r\n--" + boundary + "\r\n" + strings.Join(parts, "\r\n--"+boundary+"\r\n") + "\r\n--" + boundary + "--\r\nepilogue"
}

func part(id, data string) string { return "Content-ID: <" + id + ">\r\n\r\n" + data }

func reader(t *testing.T, text string, start string) *Reader {
	t.Helper()
	r, err := NewReader(iotest.OneByteReader(strings.NewReader(text)), map[string]string{"boundary": boundary, "start": start})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// A file may hold whatever looks like the packaging.
var tricky = "\r\n--" + boundary[:4] + "\r\n--" + boundary + "almost\r\n-" + "\r\n--\r\n\r\n\x00\xff\n--" + boundary + "\r"

func TestPartsInTurn(t *testing.T) {
	r := reader(t, message(part("root", "<x/>"), part("d@x", tricky), part("c", "sum")), "<root>")
	root, err := r.Root()
	check(t, root, err, "<x/>")
	data, err := r.Open("d@x")
	check(t, data, err, tricky)
	sum, err := r.Open("c")
	check(t, sum, err, "sum")
	if _, err := r.Open("none"); err == nil || !strings.Contains(err.Error(), "no attachment 'none'") {
		t.Error(err)
	}
}

func check(t *testing.T, from io.Reader, err error, want string) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(from)
	if err != nil || string(got) != want {
		t.Fatalf("got %q (%v), want %q", got, err, want)
	}
}

func TestSmallPartsMayComeEarly(t *testing.T) {
	r := reader(t, message(part("c", "sum"), part("root", "<x/>"), part("d", "data")), "root")
	root, err := r.Root()
	check(t, root, err, "<x/>")
	data, err := r.Open("d")
	check(t, data, err, "data")
	sum, err := r.Open("c")
	check(t, sum, err, "sum")
}

func TestLargePartsMayNot(t *testing.T) {
	r := reader(t, message(part("root", "<x/>"), part("c", strings.Repeat("c", keepBytes+1)), part("d", "data")), "")
	if _, err := r.Root(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Open("d"); err == nil || !strings.Contains(err.Error(), "too long to keep") {
		t.Error(err)
	}
}

func TestMissingEndIsAnError(t *testing.T) {
	whole := message(part("root", "<x/>"), part("d", "data"))
	for cut := strings.Index(whole, "data"); cut < strings.LastIndex(whole, "--"+boundary+"--"); cut++ {
		r := reader(t, whole[:cut], "")
		root, err := r.Root()
		check(t, root, err, "<x/>")
		data, err := r.Open("d")
		if err != nil {
			continue
		}
		if got, err := io.ReadAll(data); err == nil {
			t.Errorf("cut at %d: %q was taken for whole", cut, got)
		}
	}
}

func TestTransferEncodings(t *testing.T) {
	r := reader(t, message("Content-Transfer-Encoding: 8bit\r\n\r\n<x/>", "content-id: <d>\r\nContent-Transfer-Encoding: BASE64\r\n\r\naGVs\r\nbG8=\r\n",
		"Content-ID: <e>\r\nContent-Transfer-Encoding: x-own\r\n\r\nhello"), "")
	root, err := r.Root()
	check(t, root, err, "<x/>")
	data, err := r.Open("d")
	check(t, data, err, "hello")
	if _, err := r.Open("e"); err == nil {
		t.Error("an unknown encoding was taken")
	}
}

func TestNoParts(t *testing.T) {
	if _, err := NewReader(strings.NewReader(""), map[string]string{}); err == nil {
		t.Error("a missing boundary was taken")
	}
	if _, err := reader(t, "--"+boundary+"--\r\n", "").Root(); err == nil {
		t.Error("a body without parts has a root")
	}
	many := reader(t, message(strings.Split(strings.Repeat("Content-ID: <a>\r\n\r\nx|", 200), "|")...), "")
	if _, err := many.Open("b"); err == nil || !strings.Contains(err.Error(), "too many parts") {
		t.Error(err)
	}
}

func TestWriterIsRead(t *testing.T) {
	var out bytes.Buffer
	w := NewWriter(&out)
	for _, err := range []error{w.Root(), write(&out, "<x/>"), w.Attachment("1@a"), write(&out, tricky), w.Attachment("2@a"), write(&out, ""), w.Close()} {
		if err != nil {
			t.Fatal(err)
		}
	}
	media, parameters, err := mime.ParseMediaType(w.ContentType())
	if err != nil || media != "multipart/related" || parameters["type"] != "application/xop+xml" {
		t.Fatal(media, parameters, err)
	}
	r, err := NewReader(&out, parameters)
	if err != nil {
		t.Fatal(err)
	}
	root, err := r.Root()
	check(t, root, err, "<x/>")
	data, err := r.Open("1@a")
	check(t, data, err, tricky)
	nothing, err := r.Open("2@a")
	check(t, nothing, err, "")
}

func write(to io.Writer, text string) error { _, err := io.WriteString(to, text); return err }
