"""The page that talks: what runs in a visitor's browser (`index.html`, `page.js`), and what puts it together."""
