// What the search bought.
/** A bound as a percentage, rounded up. */
const hundredths = share => (Math.max(1, Math.ceil(1e4 * share)) / 100).toFixed(2);

function renderSearch() {
  show(
    'search',
    h(
      'div',
      { class: 'two' },
      shownPlans().map(plan => {
        const { search } = plan.view,
          { planner } = search,
          before = planner ? planner.before : search.before;
        const fact = (words, ...value) =>
          h('tr', {}, h('td', { class: 'text' }, words), h('td', { class: 'text wrap' }, value));
        const gained = before > 0 ? percent(Math.abs(1 - search.after / before)) : percent(0);
        const saved = gained === percent(0) ? ', unchanged' : ` (${search.after <= before ? '−' : '+'}${gained})`;
        const facts = h(
          'table',
          {},
          h(
            'tbody',
            {},
            fact('cost', `${seconds(before)} → `, h('b', {}, seconds(search.after)), saved),
            planner &&
              fact(
                'placements',
                planner.taken
                  ? `planned: ${seconds(planner.before)} → ${seconds(planner.after)}`
                  : 'the planner found none that cost less',
              ),
            planner &&
              fact(
                'lower bound',
                planner.bound === null
                  ? 'not known for a mesh of more than two axes'
                  : `${seconds(planner.bound)}; other placements could be at most ${hundredths(planner.gap)}% cheaper`,
              ),
            !planner &&
              fact(
                'lower bound',
                'none: the plan gives the placements; --placements planned chooses them, with a bound',
              ),
            fact(
              'stopped',
              search.unfinished
                ? `after ${search.unfinished}: it might find more`
                : `${search.stop}, ${search.extraction}: nothing more was found`,
            ),
            fact(
              'searched',
              `${counted(search.nodes, 'e-node')} in ${counted(search.rounds, 'round')}, `,
              `${counted(search.applications, 'application')} of rules`,
            ),
            search.declined !== null &&
              fact('declined', `a program of ${seconds(search.declined)}, slower than what came in`),
            search.blocks.length > 0 &&
              fact(
                'blocks',
                search.blocks.map(([path, times]) => `${path || 'block'} ×${times}`).join(', '),
                ', each searched once',
              ),
            planner &&
              planner.steps.length > 0 &&
              fact(
                'planned along',
                planner.steps
                  .map(
                    step =>
                      `${step.axes.join(' and ')}: ${counted(step.states, 'state')}, ${seconds(step.seconds)}, ` +
                      `at least ${seconds(step.bound)}`,
                  )
                  .join('; '),
              ),
          ),
        );
        const table = rules =>
          h(
            'table',
            {},
            h(
              'thead',
              {},
              h(
                'tr',
                {},
                [
                  ['rule', ''],
                  ['what it states', 'text'],
                  ['applied', ''],
                  ['operations due to it', ''],
                ].map(([words, kind]) => h('th', { class: kind, scope: 'col' }, words)),
              ),
            ),
            h(
              'tbody',
              {},
              rules.map(rule =>
                h(
                  'tr',
                  {},
                  h('td', {}, String(rule.rule)),
                  h(
                    'td',
                    { class: 'text wrap' },
                    h('b', {}, rule.name),
                    !rule.exact && h('span', { class: 'quiet' }, ' · sums in another order'),
                    h('div', { class: 'quiet' }, rule.equality),
                  ),
                  h('td', {}, count(rule.applied)),
                  h('td', { class: rule.paid ? '' : 'zero' }, rule.paid ? h('b', {}, count(rule.paid)) : '·'),
                ),
              ),
            ),
          );
        const sorted = [...search.rules].sort((a, b) => b.paid - a.paid || b.applied - a.applied);
        const paid = sorted.filter(rule => rule.paid),
          idle = sorted.filter(rule => !rule.paid);
        return h(
          'div',
          {},
          two && h('h3', {}, `plan ${plan.name}: `, h('span', { class: 'mono' }, plan.flags)),
          facts,
          paid.length > 0 && table(paid),
          idle.length > 0 &&
            h(
              'details',
              {},
              h(
                'summary',
                {},
                `${counted(idle.length, paid.length ? 'other rule' : 'rule')} applied, without an operation in the result`,
              ),
              table(idle),
            ),
          sorted.length === 0 && h('p', { class: 'quiet' }, 'No rule was applied.'),
        );
      }),
    ),
  );
}
