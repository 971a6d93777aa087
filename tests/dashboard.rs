//! The dashboard as an operator uses it: real Chromium, three real instances with a bot behind a balancer, and their leader killed
//! while the page is open.
//!
//! With `OPENCLAW_SCREENSHOTS` set to a directory, pictures of the page are left there, for people to look at.

mod browser;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use browser::{Browser, Page, installed};
use fantoccini::Locator;
use fantoccini::actions::{InputSource, KeyAction, KeyActions};
use fantoccini::key::Key;
use jepsen_lite::cluster::{Cluster, Options};
use jepsen_lite::fakes::telegram::{self, ChatId, UserId};
use jepsen_lite::network::Balancer;
use openclaw_proto::http::ChatRequest;
use openclaw_proto::ids::IdempotencyKey;
use serde_json::json;

const READY: Duration = Duration::from_secs(60);
const BOT: &str = "7000001:harness-harness-harness-harness-h";
const TOKEN: &str = "a-token-that-is-long-enough-for-a-gateway";

/// What the scripts of these tests say briefly.
const PRELUDE: &str = r"
    const $ = (id) => document.getElementById(id);
    const rows = (id) => [...$(id).tBodies[0].rows].map((row) => [...row.cells].map((cell) => cell.innerText.trim()));
    const events = () => [...$('events').children].map((item) => item.lastChild.textContent);
    const spoken = (text) => text.replace(/\s+/g, ' ').trim();
";

/// Everything about the page that a machine can judge for those who do not see it, or see it badly. One line per fault.
const AUDIT: &str = r"
    const faults = [];
    const fault = (...words) => faults.push(words.join(' '));
    const visible = (each) => each.checkVisibility({ visibilityProperty: true }) && each.getClientRects().length > 0;
    const all = (selector) => [...document.querySelectorAll(selector)].filter(visible);
    const name = (each) => each.getAttribute('aria-label')
        ?? (each.getAttribute('aria-labelledby') ?? '').split(' ').map((id) => $(id)?.textContent ?? '').join(' ').trim();

    for (const landmark of ['header', 'main', 'nav']) if (all(landmark).length === 0) fault('no', landmark);
    if (document.querySelectorAll('h1').length !== 1) fault('not one h1');
    let level = 1;
    for (const heading of all('h1, h2, h3, h4')) {
        const own = Number(heading.tagName[1]);
        if (own > level + 1) fault('the heading', heading.textContent, 'skips a level');
        if (heading.textContent.trim() === '') fault('an empty heading', heading.id);
        level = own;
    }
    for (const each of all('section, nav, [role=region]')) if (!name(each)) fault('no name:', each.outerHTML.slice(0, 80));
    for (const each of all('a, button, summary')) if (!name(each) && each.textContent.trim() === '') fault('no name:', each.outerHTML.slice(0, 80));
    for (const each of all('table')) {
        if (!each.caption?.textContent.trim()) fault('a table without a caption:', each.id);
        for (const head of each.querySelectorAll('th')) if (!['row', 'col'].includes(head.scope)) fault('a header without a scope:', head.textContent);
        for (const row of each.tBodies[0].rows) if (row.cells.length !== each.tHead.rows[0].cells.length) fault('a row of another length:', row.textContent);
    }
    for (const each of all('table.cards')) for (const part of each.querySelectorAll('tr, th, td')) if (!part.getAttribute('role')) fault('no role:', part.outerHTML.slice(0, 80));
    for (const each of all('svg')) {
        if (each.getAttribute('aria-hidden') === 'true') continue;
        if (each.getAttribute('role') !== 'img' || !name(each)) fault('a picture without words:', each.outerHTML.slice(0, 80));
    }
    for (const each of all('.chart')) if (!each.closest('figure')?.querySelector('details')) fault('a chart without a table:', each.id);
    const ids = [...document.querySelectorAll('[id]')].map((each) => each.id);
    for (const id of new Set(ids.filter((id, index) => ids.indexOf(id) !== index))) fault('an id twice:', id);

    // Contrast as WCAG 2 counts it, of every text against what lies behind it.
    const colour = (text) => {
        const made = text.match(/[\d.]+/g).map(Number);
        if (text.startsWith('color(srgb')) return [...made.slice(0, 3).map((part) => part * 255), made[3] ?? 1];
        return [...made.slice(0, 3), made[3] ?? 1];
    };
    const luminance = ([r, g, b]) => {
        const [x, y, z] = [r, g, b].map((part) => (part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4));
        return 0.2126 * x + 0.7152 * y + 0.0722 * z;
    };
    const behind = (each) => {
        for (let at = each; at; at = at.parentElement) {
            const back = colour(getComputedStyle(at).backgroundColor);
            if (back[3] === 1) return back;
            if (back[3] > 0) fault('a background that is half there:', at.outerHTML.slice(0, 80));
        }
        return [255, 255, 255, 1];
    };
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    let texts = 0;
    for (let text = walker.nextNode(); text; text = walker.nextNode()) {
        const each = text.parentElement;
        if (text.textContent.trim() === '' || !visible(each) || each.closest('.visually-hidden, .skip, noscript, dialog')) continue;
        texts += 1;
        const style = getComputedStyle(each);
        const fore = colour(each instanceof SVGElement ? style.fill : style.color);
        const [light, dark] = [luminance(fore), luminance(behind(each))].sort((a, b) => b - a);
        const ratio = (light + 0.05) / (dark + 0.05);
        const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && Number(style.fontWeight) >= 700);
        if (ratio < (large ? 3 : 4.5)) fault(`contrast ${ratio.toFixed(2)}:`, text.textContent.trim().slice(0, 40));
        if (parseFloat(style.fontSize) < 12) fault('small print:', text.textContent.trim().slice(0, 40));
    }
    if (texts < 40) fault('only', texts, 'texts were looked at');
    // Lines and marks that carry meaning need less, but not nothing.
    for (const each of all('path.line, rect.nobody')) {
        const style = getComputedStyle(each);
        const [light, dark] = [luminance(colour(each.matches('.nobody') ? style.fill : style.stroke)), luminance(behind(each))].sort((a, b) => b - a);
        if ((light + 0.05) / (dark + 0.05) < 3) fault('a line that is hard to see:', each.getAttribute('class'));
    }
    if (document.documentElement.scrollWidth > innerWidth) {
        fault('it is wider than the screen:', document.documentElement.scrollWidth, [...document.querySelectorAll('main *')].filter((each) => each.getBoundingClientRect().right > innerWidth + 1).slice(0, 5).map((each) => each.outerHTML.slice(0, 60)).join(' | '));
    }
    return faults.join('\n');
";

/// How a screen is.
struct Screen {
    name: &'static str,
    width: u32,
    dark: bool,
}

const SCREENS: [Screen; 4] = [
    Screen { name: "light", width: 1280, dark: false },
    Screen { name: "dark", width: 1280, dark: true },
    Screen { name: "light-phone", width: 360, dark: false },
    Screen { name: "dark-phone", width: 360, dark: true },
];

async fn resize(browser: &Browser, width: u32, height: u32) -> Result<()> {
    let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500});
    browser.devtools("Emulation.setDeviceMetricsOverride", metrics).await?;
    Ok(())
}

/// Looks at the page on every screen: what a machine can judge, and pictures of the rest.
async fn look(browser: &Browser, page: &Page<'_>, moment: &str) -> Result<()> {
    for Screen { name, width, dark } in SCREENS {
        let scheme = if dark { "dark" } else { "light" };
        let features = json!({"features": [
            {"name": "prefers-color-scheme", "value": scheme}, {"name": "prefers-reduced-motion", "value": "reduce"},
        ]});
        browser.devtools("Emulation.setEmulatedMedia", features).await?;
        resize(browser, width, 900).await?;
        // Charts are drawn anew for the new width.
        page.until("the charts fit", "return [...document.querySelectorAll('.chart')].every((each) => !each.firstChild || Math.abs(Number(each.firstChild.getAttribute('width')) - each.clientWidth) < 2)").await?;
        let faults = page.text(&format!("(() => {{ {PRELUDE} {AUDIT} }})()")).await?;
        ensure!(faults.is_empty(), "{moment}, {name}:\n{faults}");
        if let Some(directory) = std::env::var_os("OPENCLAW_SCREENSHOTS") {
            resize(browser, width, page.text("document.documentElement.scrollHeight").await?.parse()?).await?;
            let picture = browser.client.screenshot().await?;
            std::fs::write(Path::new(&directory).join(format!("{moment}-{name}.png")), picture)?;
        }
    }
    browser.devtools("Emulation.clearDeviceMetricsOverride", json!({})).await?;
    Ok(())
}

/// Whether the console has nothing to complain about, but for what `expected` says.
async fn quiet(browser: &Browser, expected: &[&str]) -> Result<()> {
    let lines = browser.console().await?;
    let unexpected: Vec<_> = lines.iter().filter(|line| !expected.iter().any(|text| line.contains(text))).collect();
    ensure!(unexpected.is_empty(), "the console says {unexpected:?}");
    Ok(())
}

async fn press_tab(page: &Page<'_>) -> Result<String> {
    let tab = KeyActions::new("keys".to_owned())
        .then(KeyAction::Down { value: Key::Tab.into() })
        .then(KeyAction::Up { value: Key::Tab.into() });
    page.client.perform_actions(tab).await?;
    page.text(
        "(() => { const each = document.activeElement; if (!each || each === document.body) return '';
        const style = getComputedStyle(each);
        const shown = style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2;
        return `${each.getAttribute('aria-label') ?? each.textContent.trim()}${shown ? '' : ' (not visible)'}`; })()",
    )
    .await
}

/// Goes through the page by Tab, and gives what had the focus, visibly: from one time that it leaves the page to the next.
async fn tab_through(page: &Page<'_>) -> Result<Vec<String>> {
    const MOST: usize = 60;
    let mut seen = Vec::new();
    let mut left = 0;
    for _ in 0..MOST {
        let focused = press_tab(page).await?;
        if focused.is_empty() {
            left += 1;
        } else if left == 1 {
            seen.push(focused);
        }
        if left == 2 {
            return Ok(seen);
        }
    }
    bail!("Tab does not leave the page; it reached {seen:?}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_is_shown_and_said_on_the_open_page() -> Result<()> {
    if !installed(&["chromium", "chromedriver"]) {
        return Ok(());
    }
    let telegram = telegram::start(SocketAddr::from(([127, 0, 0, 1], 0)), telegram::Options::with_bots(&[BOT])).await?;
    let bot = telegram::Account::new(BOT).id();
    let settings = json!({"botToken": BOT, "apiRoot": telegram.api_url(), "dmPolicy": "open", "allowFrom": ["*"]});
    let options = Options::new(env!("CARGO_BIN_EXE_openclaw"), 3).written("channels", json!({"telegram": settings}));
    let mut cluster = Cluster::start(options, READY).await?;
    let balancer = Balancer::start(cluster.instances().iter().map(|instance| instance.http).collect()).await?;
    telegram.wait_for_poll(bot, READY).await?;

    // From WebChat there, as people go.
    let browser = Browser::start().await?;
    let page = browser.page(PRELUDE);
    browser.client.goto(&format!("http://{}/", balancer.address())).await?;
    browser.client.find(Locator::LinkText("Cluster")).await?.click().await?;
    page.until("all is well", "return $('verdict')?.dataset.state === 'good'").await?;
    page.client
        .execute(
            "window.unchanged = true; window.said = []; window.violations = [];
            addEventListener('securitypolicyviolation', (event) => window.violations.push(event.violatedDirective));
            new MutationObserver(() => window.said.push(document.getElementById('announcer').textContent)).observe(document.getElementById('announcer'), { childList: true });",
            vec![],
        )
        .await?;

    // Something to show, on every instance.
    for (n, instance) in cluster.instances().iter().enumerate() {
        let client = instance.client();
        for m in 0..4 {
            let request = ChatRequest {
                session_key: Some(format!("agent:main:{n}-{m}")),
                message: "count [tokens=5 delay=20ms]".into(),
                ..ChatRequest::default()
            };
            client.chat(&request, &IdempotencyKey::random()).await.ok()?;
        }
    }
    telegram.say(bot, ChatId(11), UserId(11), "hello there")?;
    telegram.wait_for_message(bot, |message| !message.content.text.is_empty(), READY).await?;
    page.until(
        "the work shows, of all instances",
        "return rows('instances').length === 3 && rows('instances').every((row) => Number(row[5]) > 0) && $('tile-turn').textContent !== '–'",
    )
    .await?;
    page.until("the channel shows", "return rows('channels').some((row) => row[0] === 'telegram:default' && row[1].startsWith('node-') && row[3].includes('connected') && row[6].includes('ago'))").await?;

    let reached = tab_through(&page).await?;
    let expected = [
        "Skip to the cluster",
        "Chat",
        "Cluster",
        "As a table: rates",
        "As a table: times",
        "As a table: who led, and who ran what",
    ];
    ensure!(reached == expected, "Tab reaches {reached:?}");
    page.client.execute("document.querySelectorAll('details').forEach((each) => (each.open = true))", vec![]).await?;
    page.until(
        "the tables beside the charts are filled",
        "return [...document.querySelectorAll('details')].every((each) => each.querySelector('tbody tr'))",
    )
    .await?;
    let regions = tab_through(&page).await?;
    for name in ["Rates as a table", "Times as a table", "Who led, and who ran what, as a table"] {
        ensure!(regions.iter().any(|seen| seen == name), "Tab reaches {regions:?}");
    }
    page.client.execute("document.querySelectorAll('details').forEach((each) => (each.open = false))", vec![]).await?;
    look(&browser, &page, "well").await?;
    // WebChat asks whether its new conversation was ever written to.
    quiet(&browser, &["/api/v1/sessions/"]).await?;

    let leader = page.text("document.querySelector('.leads').closest('tr').dataset.key").await?;
    let index = cluster.instances().iter().position(|one| one.id.as_str() == leader).context("an instance of ours")?;
    cluster.instance(index).process.kill()?;
    page.until(
        "another instance is shown to lead",
        &format!("const leads = document.querySelector('.leads')?.closest('tr').dataset.key; return Boolean(leads) && leads !== '{leader}' && $('connection').dataset.state === 'open'"),
    )
    .await?;
    page.until("it is said", "return window.said.length > 0").await?;
    page.until(
        "the dead one is shown as gone, its channel with another, and both are told",
        &format!(
            "return rows('instances').some((row) => row[0] === '{leader}' && row[2].includes('gone'))
                && rows('channels')[0][1] !== '{leader}' && rows('channels')[0][3].includes('connected')
                && events().some((text) => text.startsWith('{leader} is gone')) && events().some((text) => /^node-\\d leads, in term/.test(text))"
        ),
    )
    .await?;
    let said = page.text("window.said.join('|')").await?;
    let said: Vec<_> = said.split('|').collect();
    let each_once = said.iter().all(|text| said.iter().filter(|other| *other == text).count() == 1);
    let gap = said.iter().any(|text| text.contains("leads, in term") && text.contains("There was no leader for"));
    ensure!(each_once && gap, "a listener heard {said:?}");
    let title = page.text("document.getElementById('verdict-title').textContent").await?;
    ensure!(title.contains("one more loss stops the cluster"), "the page says {title:?}");
    look(&browser, &page, "failover").await?;

    // Two are gone: no leader. All are gone: nobody to ask. And back, on the same page.
    let other = (0..3).find(|other| *other != index).context("another")?;
    cluster.instance(other).process.kill()?;
    page.until(
        "there is no leader",
        "return $('verdict-title').textContent.startsWith('No leader') && $('verdict').dataset.state === 'bad'",
    )
    .await?;
    look(&browser, &page, "no-leader").await?;
    let third = (0..3).find(|third| ![index, other].contains(third)).context("a third")?;
    cluster.instance(third).process.kill()?;
    page.until("the connection is lost, and what is shown is marked as old", "return $('connection').dataset.state === 'lost' && document.body.classList.contains('old') && $('notice-text').textContent.includes('What you see is from')").await?;
    look(&browser, &page, "lost").await?;
    cluster.start_all()?;
    page.until(
        "all is well again",
        "return $('verdict').dataset.state === 'good' && $('connection').textContent === 'Live' && $('notice').hidden",
    )
    .await?;
    ensure!(page.text("window.unchanged").await? == "true", "the page was loaded anew");
    ensure!(page.text("window.violations.join(' ')").await?.is_empty(), "the page broke its policy");
    let foreign = page.text("performance.getEntriesByType('resource').map((each) => each.name).filter((name) => !name.startsWith(location.origin)).join(' ')").await?;
    ensure!(foreign.is_empty(), "the page loaded {foreign}");
    // What cannot be reached is Chromium's to say, and not the page's fault.
    quiet(&browser, &["Failed to load resource: net::ERR_"]).await?;

    browser.client.find(Locator::LinkText("Chat")).await?.click().await?;
    page.until("WebChat is there again", "return Boolean($('composer'))").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_alone_without_anything_says_what_is_so_to_who_has_the_token() -> Result<()> {
    if !installed(&["chromium", "chromedriver"]) {
        return Ok(());
    }
    let options = Options::new(env!("CARGO_BIN_EXE_openclaw"), 1).variable("OPENCLAW_GATEWAY_TOKEN", TOKEN);
    let cluster = Cluster::start(options, READY).await?;
    let browser = Browser::start().await?;
    let page = browser.page(PRELUDE);
    browser.client.goto(&format!("http://{}/cluster", cluster.instances()[0].http)).await?;
    page.until("the token is asked for", "return $('token-dialog')?.open === true").await?;
    browser.client.find(Locator::Id("token-later")).await?.click().await?;
    page.until(
        "without it the page says what it lacks",
        "return $('notice-text').textContent.includes('access token') && $('shown').hidden",
    )
    .await?;
    browser.client.find(Locator::Id("retry")).await?.click().await?;
    page.until("it is asked for again", "return $('token-dialog').open").await?;
    let field = browser.client.find(Locator::Id("token")).await?;
    field.send_keys(&format!("{TOKEN}{}", char::from(Key::Enter))).await?;
    page.until("the page is shown", "return !$('shown').hidden && $('connection').textContent === 'Live'").await?;
    page.until(
        "it says what there is not",
        "return $('verdict-title').textContent === 'node-1 works alone' && !$('no-channels').hidden && $('channels').hidden
            && !$('no-events').hidden && $('tile-turn').textContent === '–' && rows('instances').length === 1",
    )
    .await?;
    look(&browser, &page, "alone").await?;
    ensure!(page.text("location.pathname + location.search + location.hash").await? == "/cluster");
    quiet(&browser, &["401 (Unauthorized)"]).await?;
    Ok(())
}
